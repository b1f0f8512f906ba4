//! Start-up: the table at the head of `main.rs`, as code.

use boot::{BootInfo, Cmdline, CmdlineText, LogLevel, RingFrames};
use evtchn::AbiKind;
use mm::{Mfn, Pfn};
use percpu::{Area, CpuId, CpuSet};
use spin::Once;
use xen_sys::abi::arch::SEGBASE_GS_KERNEL;
use xen_sys::abi::xen::StartInfo;
use xen_sys::hypercall::{traps as hypercall, version};

use crate::start_info::{self, Rings};
use crate::{
    bench, console, control, cpus, devices, dump, events, executor, hotplug, memory, selftest, time, timer, trace,
    traps, user, vector, workload,
};

/// The boot CPU's area. In the image, because it is needed before there is a heap.
static BOOT_AREA: Area = Area::new(CpuId::BOOT);

static CMDLINE: Once<CmdlineText> = Once::new();
static LOG: Once<LogLevel> = Once::new();

/// The least severe notes that are printed.
pub(crate) fn log_level() -> LogLevel {
    LOG.get().copied().unwrap_or(LogLevel::Info)
}

/// Where `boot`'s entry code arrives: vcpu 0, once, on the boot stack, upcalls masked, no gs, no trap table.
///
/// # Safety
/// Called by the entry code only, with what Xen passed.
#[unsafe(no_mangle)]
unsafe extern "C" fn stasis_main(start_info: *const StartInfo, builder_stack_top: u64) -> ! {
    let entered_tsc = time::tsc();
    // SAFETY: the area is linked and stays (GS1).
    unsafe { hypercall::set_segment_base(SEGBASE_GS_KERNEL, BOOT_AREA.link()) }.expect("a canonical base for gs");
    traps::register();

    // SAFETY: Xen passes a page that it has filled, and nobody writes to it before the first suspend.
    let info = BootInfo::read(unsafe { &*start_info }, mm::layout::P2M_BASE);
    let info = info.unwrap_or_else(|error| panic!("{error}"));
    if info.rings.is_none() {
        console::connect_hypervisor();
    }
    // SAFETY: first thing on the boot stack, once.
    if let Err(error) = unsafe { memory::init(&info, builder_stack_top) } {
        panic!("memory: {error}");
    }
    let start_info_pfn = Pfn::of_image(start_info.addr() as u64).expect("the builder maps start_info after the image");
    let rings = info.rings.map(pages_of);
    start_info::init(start_info_pfn, rings);
    if let Some(rings) = rings {
        // SAFETY: the page is ours, the daemon's and nobody else's, and is made of atomics.
        console::connect_ring(unsafe { &*memory::direct(rings.console) });
    }

    let text = CMDLINE.call_once(|| info.cmdline);
    let cmdline = Cmdline::parse(text.as_str()).unwrap_or_else(|error| panic!("{error}"));
    LOG.call_once(|| cmdline.log);
    if cmdline.test.is_some() && cmdline.bench.is_some() {
        panic!("test= and bench=: each ends the domain; say one of them");
    }
    let benches = cmdline.bench.map(|names| bench::Chosen::parse(names).unwrap_or_else(|error| panic!("{error}")));

    let nr = cpus::count().unwrap_or_else(|error| panic!("{error}"));
    events::init(
        nr,
        match cmdline.abi {
            boot::Abi::TwoLevel => AbiKind::TwoLevel,
            boot::Abi::Fifo => AbiKind::Fifo,
        },
        if benches.is_some() { bench::on_timer } else { events::on_timer },
    );
    executor::init(nr);
    timer::init(nr);
    user::init(nr);
    vector::init(nr);
    dump::init(nr);
    trace::init(nr, cmdline.trace);
    cpus::start_boot_cpu(nr, cmdline.resume, start_info::page().shared_info_maddr(), entered_tsc);
    say_boot(text, nr, info.nr_pages, &cmdline);
    if rings.is_some() {
        devices::connect();
    }

    let run = async move {
        match rings {
            None => {
                cpus::start_others(&CpuSet::first(nr));
                cpus::online().await;
            }
            Some(rings) => {
                // SAFETY: the page is ours, the daemon's and nobody else's, and is made of atomics.
                let store = control::open(unsafe { &*memory::direct(rings.store) }).await;
                let (watch, wanted) = hotplug::at_boot(store).await;
                cpus::start_others(&wanted);
                cpus::online().await;
                control::start(store, cmdline.suspend);
                executor::spawn_own(hotplug::serve(store, watch));
            }
        }
        match (cmdline.test, benches) {
            (Some(name), _) => selftest::start(name),
            (None, Some(benches)) => bench::start(benches),
            (None, None) => workload::start(cmdline.workload, cmdline.seed),
        }
    };
    executor::spawn_own(run);
    executor::spawn_own(console::task(dump::command));
    executor::spawn_own(dump::list_ports_when_asked());
    executor::spawn_own(trace::task());
    executor::run()
}

/// Our own numbers of the rings' pages: their machine frames mean nothing after a restore.
fn pages_of(frames: RingFrames) -> Rings {
    let page_of = |mfn: u64, what: &str| {
        memory::pfn_of_mfn(Mfn::new(mfn)).unwrap_or_else(|| panic!("start_info: the {what} ring is not our memory"))
    };
    Rings { store: page_of(frames.store_mfn, "xenstore"), console: page_of(frames.console_mfn, "console") }
}

fn say_boot(text: &CmdlineText, nr: usize, nr_pages: u64, cmdline: &Cmdline<'_>) {
    let xen = version::xen_version().expect("Xen knows its version");
    let extra = version::extraversion().unwrap_or_default();
    let extra = extra.split(|byte| *byte == 0).next().unwrap_or_default();
    crate::say!(
        "boot",
        version = env!("CARGO_PKG_VERSION"),
        xen = format_args!("{}.{}{}", xen.major, xen.minor, extra.escape_ascii()),
        vcpus = nr,
        mem_pages = nr_pages,
        abi = events::get().abi(),
        cmdline = text.as_str(),
    );
    for key in cmdline.unknown_keys() {
        crate::note!(Warn, "command line: {key}= is not a key that this kernel knows; it is ignored");
    }
    if text.may_be_cut() {
        crate::note!(
            Warn,
            "command line: it fills all 1023 bytes that Xen passes on; what is missing was cut by the toolstack"
        );
    }
}
