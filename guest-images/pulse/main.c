/* Start: parameters, the other vCPUs, READY; then every vCPU goes to work. */
#include "pulse.h"

extern const char trampoline_start[], trampoline_end[];

static void copy(void *to, const void *from, u32 bytes)
{
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
}

static void spin_ms(u32 ms)
{
	u64 until = rdtsc() + (u64)config.tsc_khz * ms;

	while (rdtsc() < until)
		__asm__ volatile("pause");
}

static void send_to_others(u32 message)
{
	for (u32 i = 1; i < config.cpus; i++) {
		apic_write(APIC_ICR_HIGH, i << 24);
		apic_write(APIC_ICR_LOW, message);
	}
}

/* INIT, 10 ms, SIPI (Intel SDM volume 3, 9.4.4). */
static void start_others(void)
{
	u64 deadline;

	copy((void *)TRAMPOLINE, trampoline_start, (u32)(trampoline_end - trampoline_start));
	send_to_others(0x4500);
	spin_ms(10);
	send_to_others(0x4600 | TRAMPOLINE >> 12);
	prepare(0);
	/* A vCPU prepares 3.5 GiB in some seconds where every instruction is emulated. */
	deadline = rdtsc() + (u64)config.tsc_khz * 30000;
	for (u32 i = 1; i < config.cpus; i++)
		while (vcpu_page(i)->state != STATE_RUNNING)
			if (rdtsc() > deadline)
				refuse("a vCPU did not start, fewer than cpus= asks for", "");
}

static void say_ready(void)
{
	print("pulse: READY cpus=");
	print_number(config.cpus);
	print(" beat=");
	print_number(config.beat_ms);
	print(" tsc_khz=");
	print_number(config.tsc_khz);
	print("\n");
}

void boot_cpu(const void *start_info)
{
	volatile struct status *status = status_page;

	status->state = STATE_STARTING;
	parse_parameters(start_info);
	/* Nothing of the two 8259: their vectors would be those of exceptions. */
	out8(0x21, 0xff);
	out8(0xa1, 0xff);
	set_up_timer();
	if (!config.tsc_khz)
		config.tsc_khz = measure_tsc_khz();
	set_up_timer();
	status->version = 1;
	status->cpus = config.cpus;
	status->tsc_khz = config.tsc_khz;
	status->beat_ms = config.beat_ms;
	copy((void *)status->magic, "FERRYPLS", 8);
	start_others();
	say_ready();
	status->state = STATE_RUNNING;
	work(0);
}

void other_cpu(u32 index)
{
	vcpu_page(index)->state = STATE_STARTING;
	set_up_timer();
	prepare(index);
	while (status_page->state != STATE_RUNNING)
		__asm__ volatile("pause");
	work(index);
}
