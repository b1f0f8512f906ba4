//! What is drawn, read back.

use svg::node::element::tag::Type;
use svg::parser::Event;

use super::*;

/// A suspend of `nr` vCPUs that takes a second, its ends a few hundred microseconds.
fn sample(nr: u32) -> Timeline {
    let zero = [
        (Mark::Asked, 0),
        (Mark::Quiet, 900_000),
        (Mark::Begun, 910_000),
        (Mark::AllArrived, 1_150_000),
        (Mark::AllStopped, 1_200_000),
        (Mark::Suspending, 1_210_000),
        (Mark::Back, 1_001_210_000),
        (Mark::EventsAttached, 1_001_230_000),
        (Mark::AllReleased, 1_001_231_000),
        (Mark::Bound, 1_001_260_000),
        (Mark::AllAlive, 1_001_600_000),
    ];
    let lane = |vcpu: u32| {
        let late = u64::from(vcpu) * 100_000 / u64::from(nr);
        let marks = [
            (Mark::Kicked, 920_000 + late),
            (Mark::Parked, 925_000 + late),
            (Mark::Arrived, 930_000 + late),
            (Mark::Released, 1_001_240_000 + late),
            (Mark::Bound, 1_001_280_000 + late),
            (Mark::FirstTask, 1_001_290_000 + late),
        ];
        Lane { vcpu, marks: marks.to_vec() }
    };
    let lanes = std::iter::once(Lane { vcpu: 0, marks: zero.to_vec() }).chain((1..nr).map(lane)).collect();
    Timeline { suspend: 3, outcome: "resumed".into(), lanes }
}

struct Box {
    fill: String,
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

/// Every rectangle, and every text.
fn read(picture: &str) -> (Vec<Box>, Vec<String>) {
    let (mut boxes, mut words) = (Vec::new(), Vec::new());
    for event in svg::read(picture).expect("it is SVG") {
        match event {
            Event::Error(error) => panic!("{error}"),
            Event::Tag("rect", Type::Start | Type::Empty, attributes) => {
                let number = |key: &str| attributes[key].parse::<f64>().expect("a number");
                let fill = attributes.get("fill").map(ToString::to_string).unwrap_or_default();
                let [x, y, width, height] = ["x", "y", "width", "height"].map(number);
                boxes.push(Box { fill, x, y, width, height });
            }
            Event::Text(text) => words.push(text.to_owned()),
            _ => {}
        }
    }
    (boxes, words)
}

#[test]
fn every_size_is_drawn_inside_its_picture() {
    for nr in [1, 2, 8, 33, 128, 512, 1024] {
        let timeline = sample(nr);
        let picture = draw(&timeline, "migrate").expect("there is something");
        assert!(!picture.contains("NaN") && !picture.contains("\"inf"));
        let (boxes, words) = read(&picture);
        let ground = &boxes.iter().find(|shape| shape.fill == "#ffffff").expect("the ground");
        for shape in &boxes {
            let inside = shape.x >= 0.0 && shape.x + shape.width <= ground.width + 0.01;
            assert!(inside && shape.width > 0.0 && shape.height > 0.0, "{nr} vCPUs: {}", shape.fill);
            assert!(shape.y + shape.height <= ground.height, "{nr} vCPUs: {}", shape.fill);
        }
        assert!(picture.contains(&format!("id=\"vcpu-{}\"", nr - 1)));
        assert!(ground.height < 2200.0, "{nr} vCPUs: {} high", ground.height);
        let stopped = boxes.iter().filter(|shape| shape.fill == super::super::style::STAND.colour).count();
        // Before and after the suspend; and the legend.
        assert_eq!(stopped, if nr > 1 { 2 * (nr as usize - 1) + 1 } else { 0 }, "{nr} vCPUs");
        assert!(words.iter().any(|text| text.contains("1.00 s")), "{nr} vCPUs: how long it was suspended");
    }
}

#[test]
fn names_and_legend_tell_what_is_to_be_seen() {
    let picture = draw(&sample(512), "save + restore").expect("there is something");
    let (_, words) = read(&picture);
    let has = |text: &str| words.iter().any(|word| word.trim() == text);
    for text in ["Suspend 3: save + restore, 512 vCPUs, resumed", "all stopped", "released, not yet aware"] {
        assert!(has(text), "{text}");
    }
    assert!(has("0") && has("496") && !has("497"), "names are thinned out");
    assert!(!has("p2m published"), "what did not happen is not explained");
    assert!(has("109 us on 511"), "the longest from the release until it was seen");
}

#[test]
fn one_that_was_given_up_is_drawn_too() {
    let mut timeline = sample(4);
    for lane in &mut timeline.lanes {
        lane.marks.retain(|(_, ns)| *ns < 1_000_000);
    }
    timeline.outcome = "aborted".into();
    let (_, words) = read(&draw(&timeline, "migrate").expect("there is something"));
    assert!(words.iter().any(|text| text.contains("in vain")));
    timeline.lanes.clear();
    assert_eq!(draw(&timeline, "migrate"), None);
}
