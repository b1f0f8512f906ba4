/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The other CPU in user mode: a process of one loop (user_spin.c), started as a usermode helper, and bound to that CPU before it becomes
 * that program. OTHER is bench.c's, settle() is guest.h's.
 */
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/umh.h>

static struct task_struct *user_spinner;

/* In the new process, before it runs the program. */
static int bind_it(struct subprocess_info *info, struct cred *unused)
{
	int err = set_cpus_allowed_ptr(current, cpumask_of(OTHER));

	if (!err)
		user_spinner = get_task_struct(current);
	return err;
}

static int start_user_spinner(void)
{
	static char *argv[] = { "/user_spin", NULL };
	static char *envp[] = { NULL };
	struct subprocess_info *info;
	int err;

	user_spinner = NULL;
	info = call_usermodehelper_setup(argv[0], argv, envp, GFP_KERNEL, bind_it, NULL, NULL);
	if (!info)
		return -ENOMEM;
	/* Returns when the program has been loaded. */
	err = call_usermodehelper_exec(info, UMH_WAIT_EXEC);
	if (!err)
		settle();
	else if (user_spinner)
		put_task_struct(user_spinner);
	return err;
}

static void stop_user_spinner(void)
{
	send_sig(SIGKILL, user_spinner, 1);
	while (!READ_ONCE(user_spinner->exit_state))
		usleep_range(1000, 1100);
	put_task_struct(user_spinner);
}
