/*
 * Time: the TSC is the clock, the local APIC's timer the alarm.
 *
 * KVM's and QEMU's APIC timer counts at 1 GHz (KVM_CAP_X86_APIC_BUS_CYCLES_NS, default 1 ns). Nothing
 * relies on it but the quality of sleep: whoever wakes up looks at the TSC.
 */
#include "pulse.h"

u32 measure_tsc_khz(void)
{
	const u32 ns = 20000000;
	u64 start;

	apic_write(APIC_DIVIDE, 0xb);
	apic_write(APIC_LVT_TIMER, 0x10000 | TIMER_VECTOR);
	apic_write(APIC_INITIAL, 0xffffffff);
	start = rdtsc();
	while (0xffffffff - apic_read(APIC_CURRENT) < ns)
		;
	return (u32)divide(rdtsc() - start, ns / 1000000);
}

void set_up_timer(void)
{
	apic_write(APIC_SPURIOUS, 0x1ff);	/* software enable, spurious vector 255 */
	apic_write(APIC_LVT_LINT0, 0x10000);	/* no interrupts of the 8259 */
	apic_write(APIC_DIVIDE, 0xb);		/* by 1 */
	apic_write(APIC_LVT_TIMER, TIMER_VECTOR);	/* one-shot */
}

/* Sleeps for about so many cycles, at most 100 ms; may return early. */
void wait_tsc(u64 cycles)
{
	u64 most = (u64)config.tsc_khz * 100;
	u32 ns;

	if (config.spin) {
		__asm__ volatile("pause");
		return;
	}
	if (cycles > most)
		cycles = most;
	ns = (u32)divide((u64)(u32)cycles * 1000000, config.tsc_khz);
	apic_write(APIC_INITIAL, ns ? ns : 1);
	wait_for_interrupt();
}
