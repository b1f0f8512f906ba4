/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What benches are made of in a guest: loopback channels and the handler of their events, other CPUs that spin or have been
 * idle, and Xen's factor between the TSC and its time. HERE is bench.c's.
 */
#include <linux/atomic.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/interrupt.h>
#include <linux/irq.h>
#include <linux/kthread.h>
#include <linux/math64.h>
#include <asm/msr.h>
#include <asm/pvclock-abi.h>
#include <asm/tsc.h>
#include <asm/xen/hypercall.h>
#include <xen/events.h>
#include <xen/interface/event_channel.h>
#include <xen/interface/vcpu.h>
#include <xen/interface/xen.h>

/* What handlers leave: written by the handler's CPU only, while the measuring thread waits. */
static u64 stamp;
static unsigned int seen;

static irqreturn_t on_event(int irq, void *data)
{
	WRITE_ONCE(stamp, rdtsc());
	/* The stamp is there before the count that announces it. */
	smp_store_release(&seen, seen + 1);
	return IRQ_HANDLED;
}

static void await(unsigned int events)
{
	while ((int)(smp_load_acquire(&seen) - events) < 0)
		cpu_relax();
}

/* A loopback channel: what is sent on one port arrives at the other. */
struct channel {
	evtchn_port_t from;
	int irq;
};

static void close_port(evtchn_port_t port)
{
	struct evtchn_close close = { .port = port };

	if (HYPERVISOR_event_channel_op(EVTCHNOP_close, &close))
		pr_err("cannot close port %u\n", port);
}

static int open_channel(struct channel *channel, unsigned int cpu)
{
	struct evtchn_alloc_unbound unbound = { .dom = DOMID_SELF, .remote_dom = DOMID_SELF };
	struct evtchn_bind_interdomain bind = { .remote_dom = DOMID_SELF };
	int err;

	err = HYPERVISOR_event_channel_op(EVTCHNOP_alloc_unbound, &unbound);
	if (err)
		return err;
	bind.remote_port = unbound.port;
	err = HYPERVISOR_event_channel_op(EVTCHNOP_bind_interdomain, &bind);
	if (err) {
		close_port(unbound.port);
		return err;
	}
	channel->from = unbound.port;
	channel->irq = bind_evtchn_to_irqhandler(bind.local_port, on_event, 0, "bench", &seen);
	if (channel->irq < 0)
		return channel->irq;
	return irq_set_affinity(channel->irq, cpumask_of(cpu));
}

/* Xen makes a port pending when it is bound: nobody measures before that event has come. */
static void settle(void)
{
	usleep_range(2000, 2100);
}

static void close_channel(const struct channel *channel)
{
	unbind_from_irqhandler(channel->irq, &seen);
	close_port(channel->from);
}

/* The other CPU, or all others, kept in the kernel with upcalls enabled. */
static bool stop_spinning;
static atomic_t spinners;

static int spin(void *unused)
{
	atomic_inc(&spinners);
	while (!READ_ONCE(stop_spinning))
		cpu_relax();
	atomic_dec(&spinners);
	return 0;
}

static int start_spinners(void)
{
	unsigned int cpu;
	int wanted = 0;

	WRITE_ONCE(stop_spinning, false);
	for_each_online_cpu(cpu) {
		struct task_struct *task;

		if (cpu == HERE)
			continue;
		task = kthread_create(spin, NULL, "bench-spin/%u", cpu);
		if (IS_ERR(task))
			return PTR_ERR(task);
		kthread_bind(task, cpu);
		wake_up_process(task);
		wanted++;
	}
	while (atomic_read(&spinners) != wanted)
		cpu_relax();
	return 0;
}

static void stop_spinners(void)
{
	WRITE_ONCE(stop_spinning, true);
	while (atomic_read(&spinners))
		cpu_relax();
}

/*
 * Waits on the spot until `cpu` has been blocked in Xen for a millisecond; Xen is asked every ten microseconds. One PAUSE in
 * between: where QEMU counts instructions the other processors need it for their turns, and each takes long.
 */
static void await_blocked(unsigned int cpu)
{
	static struct vcpu_runstate_info info;
	u64 entered = 0, since = 0, asked;

	for (;;) {
		/* Xen knows its own vCPUs. */
		BUG_ON(HYPERVISOR_vcpu_op(VCPUOP_get_runstate_info, cpu, &info));
		if (info.state != RUNSTATE_blocked || info.state_entry_time != entered) {
			entered = info.state_entry_time;
			since = rdtsc();
		} else if (info.state == RUNSTATE_blocked && rdtsc() - since >= tsc_khz) {
			return;
		}
		asked = rdtsc();
		while (rdtsc() - asked < tsc_khz / 100)
			barrier();
		cpu_relax();
	}
}

/* Before each sample: those that shall be idle have been so for a while. */
static void ready(bool idle)
{
	unsigned int cpu;

	if (!idle)
		return;
	for_each_online_cpu(cpu)
		if (cpu != HERE)
			await_blocked(cpu);
}

/* Xen's factor between TSC and system time on this vCPU; Xen keeps the copy up to date while it is registered. */
static struct pvclock_vcpu_time_info time_info __aligned(64);

static int register_time_info(struct pvclock_vcpu_time_info *info)
{
	struct vcpu_register_time_memory_area area = { .addr.v = info };

	return HYPERVISOR_vcpu_op(VCPUOP_register_vcpu_time_memory_area, HERE, &area);
}

static u64 ticks_of(u64 ns)
{
	u32 version, mul;
	s8 shift;

	do {
		version = READ_ONCE(time_info.version);
		virt_rmb();
		mul = READ_ONCE(time_info.tsc_to_system_mul);
		shift = READ_ONCE(time_info.tsc_shift);
		virt_rmb();
	} while ((version & 1) || version != READ_ONCE(time_info.version));
	/* ns = ((ticks << shift) * mul) >> 32 */
	ns = div_u64(ns << 32, mul);
	return shift < 0 ? ns << -shift : ns >> shift;
}
