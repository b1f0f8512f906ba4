/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The program of user_mode.h: the loop of stasis' own process, Program::Spin in kernel/src/user/programs.rs. */
void _start(void)
{
	for (;;)
		__builtin_ia32_pause();
}
