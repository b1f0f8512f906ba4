// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * What workload=blackout of stasis measures, in Linux as a PV guest: this module stays loaded while the guest is suspended.
 *
 * First stop_machine with a function that does nothing, while nothing else runs. Then a kernel thread pinned to each CPU reads
 * the TSC, sleeps for 200 us by hrtimer, and reads again; it keeps the largest gap. The threads are freezable, so that they see
 * what a process sees: it is frozen before anything else and thawed last. Kernel probes tell the moments of a suspend:
 *
 *   shutdown_handler        the request has been seen (drivers/xen/manage.c); what follows reads it
 *   do_suspend              gaps count from here; its return is the end: processes are thawed
 *   xen_arch_pre_suspend    its return is the last thing before the hypercall
 *   xen_arch_post_suspend   the first thing after it; told whether the domain is the same
 *
 * All are ftrace probes where the kernel has CONFIG_KPROBES_ON_FTRACE, as Debian's has: a call, no trap. Each fires once in a
 * suspend. Lines and units are those of kernel/src/workload/blackout.rs. See bench.c for MODULE_LICENSE.
 */
#define pr_fmt(fmt) "peer: " fmt

#include <linux/completion.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/freezer.h>
#include <linux/hrtimer.h>
#include <linux/kprobes.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/sort.h>
#include <linux/stop_machine.h>
#include <asm/cpuid.h>
#include <asm/msr.h>
#include <asm/xen/cpuid.h>
#include <asm/xen/hypervisor.h>

#define HERE 0u
#define PERIOD_NS 200000
/* Stops that are measured, and the time after which no more of them begins. */
#define STOPS 30
#define STOPS_NS (30ull * NSEC_PER_SEC)
/* Readings of each CPU after a suspend before its gap is told. */
#define READINGS_AFTER 2
/* Gaps in a line. */
#define PER_LINE 32u

/* One CPU's readings. */
struct reader {
	/* Largest gap since the last request: raised by its thread, cleared by the probe. One that is raised while it is cleared
	 * is of before the request, or its end is the next reading's. */
	u64 most;
	u64 readings;
	/* For the thread that tells: the readings when the suspend was over. */
	u64 before;
};
static DEFINE_PER_CPU_ALIGNED(struct reader, readers);

/* The moments of the suspend that is under way, or was the last; written in turn by the thread that suspends and, inside
 * stop_machine, by CPU 0; read when it is over. */
static struct {
	u64 seen, asked, left, back, over;
	bool cancelled;
} moments;

static DECLARE_COMPLETION(suspended);

static const char *tsc_mode(void)
{
	u32 base = xen_cpuid_base();

	/* xen/include/public/arch-x86/cpuid.h, leaf 3, sub-leaf 0. */
	return base && cpuid_eax(base + 3) & 1 ? "emulated" : "native";
}

static int read_clock(void *unused)
{
	struct reader *mine = this_cpu_ptr(&readers);
	u64 last = rdtsc();

	set_freezable();
	while (!kthread_should_stop()) {
		ktime_t period = ns_to_ktime(PERIOD_NS);
		u64 now;

		set_current_state(TASK_INTERRUPTIBLE);
		schedule_hrtimeout(&period, HRTIMER_MODE_REL);
		try_to_freeze();
		now = rdtsc();
		if (now - last > READ_ONCE(mine->most))
			WRITE_ONCE(mine->most, now - last);
		/* Whoever has seen the count sees the gap before it. */
		smp_store_release(&mine->readings, mine->readings + 1);
		last = now;
	}
	return 0;
}

static int on_request(struct kprobe *probe, struct pt_regs *regs)
{
	moments.seen = rdtsc();
	return 0;
}

static int on_suspend(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	unsigned int cpu;

	moments.asked = moments.seen;
	moments.left = moments.back = 0;
	for_each_online_cpu(cpu)
		WRITE_ONCE(per_cpu(readers, cpu).most, 0);
	return 0;
}

static int on_left(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	moments.left = rdtsc();
	return 0;
}

static int on_back(struct kprobe *probe, struct pt_regs *regs)
{
	moments.back = rdtsc();
	moments.cancelled = regs_get_kernel_argument(regs, 0);
	return 0;
}

static int on_over(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	moments.over = rdtsc();
	complete(&suspended);
	return 0;
}

static struct kprobe request = { .symbol_name = "shutdown_handler", .pre_handler = on_request };
static struct kprobe back = { .symbol_name = "xen_arch_post_suspend", .pre_handler = on_back };
static struct kretprobe suspend = {
	.kp.symbol_name = "do_suspend", .entry_handler = on_suspend, .handler = on_over, .maxactive = 2,
};
static struct kretprobe left = {
	.kp.symbol_name = "xen_arch_pre_suspend", .handler = on_left, .maxactive = 2,
};

static void await_readings(struct reader *reader)
{
	while (smp_load_acquire(&reader->readings) < reader->before + READINGS_AFTER)
		msleep(5);
}

static void tell_gaps(void)
{
	unsigned int cpu, on_line = 0, told = 0, first = 0, all = num_online_cpus();
	char line[PER_LINE * 21];
	int length = 0;
	u64 most = 0;

	for_each_online_cpu(cpu) {
		u64 gap = READ_ONCE(per_cpu(readers, cpu).most);

		most = max(most, gap);
		length += scnprintf(line + length, sizeof(line) - length, "%s%llu", on_line ? "," : "", gap);
		told++;
		if (++on_line == PER_LINE || told == all) {
			pr_notice("blackout-gaps first=%u gaps=%s\n", first, line);
			first = told;
			length = on_line = 0;
		}
	}
	pr_notice("blackout outcome=%s vcpus=%u unit=cycles tsc=%s prepare=%llu held=%llu resume=%llu max=%llu\n",
		  moments.cancelled ? "continued" : "resumed", told, tsc_mode(), moments.left - moments.asked,
		  moments.back - moments.left, moments.over - moments.back, most);
}

/* Tells each suspend; not freezable, and asleep until one is over. */
static int tell(void *unused)
{
	unsigned int cpu;

	for (;;) {
		wait_for_completion(&suspended);
		if (!moments.left || !moments.back) {
			pr_err("downtime-error what=suspend\n");
			continue;
		}
		for_each_online_cpu(cpu)
			per_cpu(readers, cpu).before = smp_load_acquire(&per_cpu(readers, cpu).readings);
		for_each_online_cpu(cpu)
			await_readings(&per_cpu(readers, cpu));
		tell_gaps();
	}
	return 0;
}

static int on_stopped(void *there)
{
	*(u64 *)there = rdtsc();
	return 0;
}

static int by_size(const void *a, const void *b)
{
	u64 left = *(const u64 *)a, right = *(const u64 *)b;

	return left < right ? -1 : left > right;
}

static int measure_stops(void)
{
	static u64 stopped[STOPS], whole[STOPS];
	u64 end = ktime_get_ns() + STOPS_NS;
	unsigned int n = 0;

	while (n < STOPS && (!n || ktime_get_ns() < end)) {
		u64 before, there = 0;
		int err;

		/* The others have fallen asleep by then. */
		usleep_range(2000, 2000);
		before = rdtsc();
		err = stop_machine(on_stopped, &there, cpumask_of(HERE));
		if (err)
			return err;
		whole[n] = rdtsc() - before;
		stopped[n++] = there - before;
	}
	sort(stopped, n, sizeof(*stopped), by_size, NULL);
	sort(whole, n, sizeof(*whole), by_size, NULL);
	pr_notice("stop-machine vcpus=%u n=%u unit=cycles tsc=%s stopped_min=%llu stopped_p50=%llu stopped_max=%llu whole_min=%llu whole_p50=%llu whole_max=%llu\n",
		  num_online_cpus(), n, tsc_mode(), stopped[0], stopped[n / 2], stopped[n - 1], whole[0], whole[n / 2],
		  whole[n - 1]);
	return 0;
}

static struct task_struct *start_on(unsigned int cpu, int (*run)(void *), const char *name)
{
	struct task_struct *task = kthread_create(run, NULL, "%s/%u", name, cpu);

	if (!IS_ERR(task)) {
		kthread_bind(task, cpu);
		wake_up_process(task);
	}
	return task;
}

static int begin(void *unused)
{
	unsigned int cpu;
	int err = measure_stops();

	for_each_online_cpu(cpu) {
		struct task_struct *task = err ? NULL : start_on(cpu, read_clock, "downtime");

		if (IS_ERR(task))
			err = PTR_ERR(task);
	}
	if (!err) {
		struct task_struct *teller = kthread_run(tell, NULL, "downtime-tell");

		err = PTR_ERR_OR_ZERO(teller);
	}
	if (err)
		pr_err("downtime-error what=start errno=%d\n", -err);
	else
		pr_notice("blackout-ready vcpus=%u period_ns=%u\n", num_online_cpus(), PERIOD_NS);
	return 0;
}

/* A load that fails half-way leaves probes behind, and a message: the guest is of no more use, and its end is near. */
static int __init downtime_init(void)
{
	int err = register_kprobe(&request) ?: register_kprobe(&back) ?: register_kretprobe(&suspend) ?:
		  register_kretprobe(&left);

	/* From a thread on CPU 0, as stasis does it from vcpu 0. */
	return err ?: PTR_ERR_OR_ZERO(start_on(HERE, begin, "downtime-begin"));
}
module_init(downtime_init);

MODULE_DESCRIPTION("Measures what a suspend costs a Xen PV guest's tasks");
MODULE_LICENSE("Dual MIT/GPL");
