// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * The benches of stasis, in Linux as a PV guest: one load of this module measures and prints, then nothing of it runs.
 *
 * Each bench has the loop that stasis has, between the same two instructions, in raw TSC ticks, so that a ratio of the two
 * says something: events on loopback interdomain ports with handlers bound the usual way, hypercalls by the kernel's own
 * stubs, function calls and timers by the kernel's own interfaces. All run in a kernel thread on CPU 0; CPU 1 is the other
 * one, spinning in a kernel thread or in a user process, or idle. Samples go into a histogram of fixed size; printing is between benches.
 *
 * These files are ours, under the licence of the rest of the tree. MODULE_LICENSE tells the kernel which of its symbols may be
 * used: those that are exported for GPL-compatible modules, which files under the MIT licence are; "Dual MIT/GPL" is how
 * the kernel spells that (include/linux/module.h). Loaded only into a guest that ends right after; never shipped.
 */
#define pr_fmt(fmt) "peer: " fmt

#include <linux/completion.h>
#include <linux/cpumask.h>
#include <linux/hrtimer.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/string.h>
#include <asm/msr.h>
#include <asm/xen/hypercall.h>
#include <xen/interface/version.h>

static char *bench = "all";
module_param(bench, charp, 0444);
MODULE_PARM_DESC(bench, "names with commas between them, or all");
static unsigned int n = 2000;
module_param(n, uint, 0444);
MODULE_PARM_DESC(n, "samples of a bench; slow ones take a part of them");
static char *abi = "unknown";
module_param(abi, charp, 0444);
MODULE_PARM_DESC(abi, "the event channel ABI that the kernel said it uses, for the lines");

#define HERE 0u
#define OTHER 1u
#define AHEAD_NS 1000000ull
/* How long a storm lasts, and how many there are. */
#define STORM_MS 100ull
#define STORMS 10

#include "guest.h"
#include "histogram.h"
#include "user_mode.h"

/* Rounds that are thrown away come first: `round` is below 0 there. */
#define for_rounds(round, rounds) for ((round) = -(int)DIV_ROUND_UP(rounds, 10); (round) < (int)(rounds); (round)++)

/* Samples of a bench where one takes long. */
static unsigned int slow(unsigned int part)
{
	return max(n / part, 1u);
}

static void keep(int round, u64 value)
{
	if (round >= 0)
		add(value);
}

static int null_hypercall(const char *name)
{
	int round;

	forget();
	for_rounds(round, n) {
		u64 before = rdtsc(), after;

		HYPERVISOR_xen_version(XENVER_version, NULL);
		after = rdtsc();
		keep(round, after - before);
	}
	print_result(name, "");
	return 0;
}

static int self_event_to(const char *name, bool to_return)
{
	struct channel channel;
	int round, err = open_channel(&channel, HERE);

	if (err)
		return err;
	settle();
	forget();
	for_rounds(round, n) {
		unsigned int before_it = seen;
		u64 before = rdtsc(), after;

		notify_remote_via_evtchn(channel.from);
		after = rdtsc();
		await(before_it + 1);
		keep(round, (to_return ? after : stamp) - before);
	}
	close_channel(&channel);
	print_result(name, "");
	return 0;
}

static int self_event(const char *name)
{
	return self_event_to(name, false);
}

static int self_event_return(const char *name)
{
	return self_event_to(name, true);
}

static int drain_of(const char *name, unsigned int k, unsigned int rounds)
{
	unsigned int open, i;
	struct channel *channels = kvcalloc(k, sizeof(*channels), GFP_KERNEL);
	char variant[16];
	int round, err = 0;

	if (!channels)
		return -ENOMEM;
	for (open = 0; open < k && !err; open += !err)
		err = open_channel(&channels[open], HERE);
	/* Where the domain has no more ports (max_event_channels) there is nothing to measure. */
	if (err) {
		pr_notice("bench-skip name=%s k=%u ports=%u errno=%d\n", name, k, open, -err);
		err = 0;
		goto out;
	}
	settle();
	forget();
	for_rounds(round, rounds) {
		unsigned int before_it = seen;
		unsigned long flags;
		u64 before;

		local_irq_save(flags);
		for (i = 0; i < k; i++)
			notify_remote_via_evtchn(channels[i].from);
		before = rdtsc();
		local_irq_restore(flags);
		await(before_it + k);
		keep(round, div_u64(stamp - before, k));
		cond_resched();
	}
	scnprintf(variant, sizeof(variant), "k=%u", k);
	print_result(name, variant);
out:
	for (i = 0; i < open; i++)
		close_channel(&channels[i]);
	kvfree(channels);
	return err;
}

static int drain(const char *name)
{
	return drain_of(name, 1, n) ?: drain_of(name, 8, n) ?: drain_of(name, 64, slow(4)) ?: drain_of(name, 256, slow(10)) ?:
	       drain_of(name, 1024, slow(20));
}

static void nothing(void *unused)
{
}

static int ipi_call_to(const char *name, bool idle)
{
	int round, err = 0;

	if (!idle && start_spinners())
		return -ENOMEM;
	forget();
	for_rounds(round, idle ? slow(4) : n) {
		u64 before, after;

		ready(idle);
		before = rdtsc();
		err = smp_call_function_single(OTHER, nothing, NULL, 1);
		after = rdtsc();
		if (err)
			break;
		keep(round, after - before);
		cond_resched();
	}
	if (!idle)
		stop_spinners();
	if (!err)
		print_result(name, idle ? "other=idle" : "other=spin");
	return err;
}

static int ipi_call(const char *name)
{
	return ipi_call_to(name, false) ?: ipi_call_to(name, true);
}

static int ipi_broadcast_to(const char *name, bool idle)
{
	char variant[32];
	int round;

	if (!idle && start_spinners())
		return -ENOMEM;
	forget();
	for_rounds(round, slow(idle ? 10 : 4)) {
		u64 before, after;

		ready(idle);
		preempt_disable();
		before = rdtsc();
		smp_call_function_many(cpu_online_mask, nothing, NULL, true);
		after = rdtsc();
		preempt_enable();
		keep(round, after - before);
		cond_resched();
	}
	if (!idle)
		stop_spinners();
	scnprintf(variant, sizeof(variant), "vcpus=%u other=%s", num_online_cpus(), idle ? "idle" : "spin");
	print_result(name, variant);
	return 0;
}

static int ipi_broadcast(const char *name)
{
	return ipi_broadcast_to(name, false) ?: ipi_broadcast_to(name, true);
}

/* What the other CPU does. */
struct state {
	const char *variant;
	bool idle;
	/* NULL: nothing is to be done for it. */
	int (*start)(void);
	void (*stop)(void);
};

static int event_other_to(const char *name, const struct state *other)
{
	struct channel channel;
	int round, err = open_channel(&channel, OTHER);

	if (err)
		return err;
	settle();
	if (other->start)
		err = other->start();
	if (err)
		goto out;
	forget();
	for_rounds(round, other->idle ? slow(4) : n) {
		unsigned int before_it = seen;
		u64 before;

		ready(other->idle);
		before = rdtsc();
		notify_remote_via_evtchn(channel.from);
		await(before_it + 1);
		keep(round, stamp - before);
		cond_resched();
	}
	if (other->stop)
		other->stop();
	print_result(name, other->variant);
out:
	close_channel(&channel);
	return err;
}

static int event_other(const char *name)
{
	static const struct state states[] = {
		{ "other=spin", false, start_spinners, stop_spinners },
		{ "other=user", false, start_user_spinner, stop_user_spinner },
		{ "other=idle", true, NULL, NULL },
	};
	unsigned int i;
	int err = 0;

	for (i = 0; i < ARRAY_SIZE(states) && !err; i++)
		err = event_other_to(name, &states[i]);
	return err;
}

static enum hrtimer_restart on_timer(struct hrtimer *unused)
{
	WRITE_ONCE(stamp, rdtsc());
	/* As in on_event. */
	smp_store_release(&seen, seen + 1);
	return HRTIMER_NORESTART;
}

static int timer_busy(const char *name)
{
	struct hrtimer timer;
	int round, err = register_time_info(&time_info);

	if (err)
		return err;
	hrtimer_init_on_stack(&timer, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_PINNED_HARD);
	timer.function = on_timer;
	forget();
	for_rounds(round, slow(4)) {
		unsigned int before_it = seen;
		u64 before, after, deadline;
		ktime_t now;

		/* The clock reads the TSC somewhere between the two; again where something came in between. */
		do {
			before = rdtsc();
			now = ktime_get();
			after = rdtsc();
		} while (after - before > tsc_khz / 100);
		deadline = before + (after - before) / 2 + ticks_of(AHEAD_NS);
		hrtimer_start(&timer, ktime_add_ns(now, AHEAD_NS), HRTIMER_MODE_ABS_PINNED_HARD);
		/* Nobody else is waited for, so without the PAUSEs that make a millisecond long where QEMU counts instructions. */
		while (smp_load_acquire(&seen) == before_it)
			barrier();
		/* Never early; what would seem so is the doubt about where the clock read the TSC. */
		keep(round, stamp > deadline ? stamp - deadline : 0);
		cond_resched();
	}
	hrtimer_cancel(&timer);
	destroy_hrtimer_on_stack(&timer);
	print_result(name, "");
	return register_time_info(NULL);
}

static int storm(const char *name)
{
	struct channel channel;
	int round, err = open_channel(&channel, OTHER);

	if (err)
		return err;
	settle();
	forget();
	for_rounds(round, STORMS) {
		unsigned int before, handled;
		u64 begin, elapsed = 0;

		ready(true);
		before = READ_ONCE(seen);
		begin = rdtsc();
		while (elapsed < STORM_MS * tsc_khz) {
			notify_remote_via_evtchn(channel.from);
			elapsed = rdtsc() - begin;
		}
		handled = READ_ONCE(seen) - before;
		/* One that did not come to run at all has handled none. */
		keep(round, div_u64(elapsed, max(handled, 1u)));
		cond_resched();
	}
	close_channel(&channel);
	print_result(name, "other=idle");
	return 0;
}

static const struct {
	const char *name;
	int (*run)(const char *name);
	unsigned int cpus;
} benches[] = {
	{ "null-hypercall", null_hypercall, 1 },
	{ "self-event", self_event, 1 },
	{ "self-event-return", self_event_return, 1 },
	{ "drain", drain, 1 },
	{ "ipi-call", ipi_call, 2 },
	{ "ipi-broadcast", ipi_broadcast, 2 },
	{ "event-other", event_other, 2 },
	{ "timer-busy", timer_busy, 1 },
	{ "storm", storm, 2 },
};

/* Whether `name` is among the words of `list`. */
static bool listed(const char *list, const char *name)
{
	size_t length = strlen(name);

	for (; list; list = strchr(list, ',') ? strchr(list, ',') + 1 : NULL)
		if (!strncmp(list, name, length) && (list[length] == ',' || !list[length]))
			return true;
	return false;
}

static DECLARE_COMPLETION(all_done);

static int run_benches(void *unused)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(benches); i++) {
		int err;

		if (strcmp(bench, "all") && !listed(bench, benches[i].name))
			continue;
		if (benches[i].cpus > num_online_cpus()) {
			pr_notice("bench-skip name=%s vcpus=%u\n", benches[i].name, num_online_cpus());
			continue;
		}
		err = benches[i].run(benches[i].name);
		if (err)
			pr_err("bench-error name=%s errno=%d\n", benches[i].name, -err);
	}
	pr_notice("bench-end benches=%u\n", printed);
	complete(&all_done);
	return 0;
}

static int __init bench_init(void)
{
	struct task_struct *task;

	if (!n || n > 1000000)
		return -EINVAL;
	task = kthread_create(run_benches, NULL, "bench");
	if (IS_ERR(task))
		return PTR_ERR(task);
	kthread_bind(task, HERE);
	wake_up_process(task);
	wait_for_completion(&all_done);
	return 0;
}
module_init(bench_init);

MODULE_DESCRIPTION("Measures a Xen PV guest's events, calls and timers");
MODULE_LICENSE("Dual MIT/GPL");
