/* What a vCPU does all day: beat, write pages at a rate, count loops, sleep. */
#include "pulse.h"

#define HEARTBEAT_PORT	0x5f0
#define IDENTITY	0x50554c53u
#define LOOPS		100

/* One vCPU's own clockwork; not of interest to the outside. */
struct clockwork {
	u64 last_tsc;
	u64 next_beat;
	u64 next_step;
	u64 next_publish;
	u64 next_phase;
	u64 loops;
	u32 resting;
	u32 octaves;
	u32 seed;
	u32 position;
};

static struct clockwork clockworks[MAX_CPUS];

static u64 cycles_of_ms(u32 ms)
{
	return (u64)config.tsc_khz * ms;
}

/*
 * Describes this vCPU's work in its page, and gives every page of its working set its identity.
 * Stamps and tables begin at 0, as fresh memory does.
 */
void prepare(u32 index)
{
	const struct cpu_config *cpu = &config.cpu[index];
	volatile struct vcpu *page = vcpu_page(index);
	u32 table = TABLES, number = cpu->ws_base_mib << 8, end = number + (cpu->ws_mib << 8);

	for (u32 i = 0; i < index; i++)
		table += config.cpu[i].ws_mib << 10;
	page->role = cpu->role;
	page->pattern = cpu->pattern;
	page->rate = cpu->rate;
	page->ws_first_page = number;
	page->ws_pages = cpu->ws_mib << 8;
	page->table = table;
	page->step = cpu->rate == RATE_MAX ? 64 : cpu->rate / 1000;
	if (page->step == 0)
		page->step = 1;
	if (page->step > MAX_STEP)
		page->step = MAX_STEP;
	page->on_ms = cpu->on_ms;
	page->off_ms = cpu->off_ms;
	for (u32 pages = page->ws_pages; pages; pages >>= 1)
		clockworks[index].octaves++;
	for (; number < end; number++)
		*(volatile u32 *)((number << 12) + 4) = number ^ IDENTITY;
	clockworks[index].seed = index * 0x9e3779b9u << 1 | 1;
	page->state = STATE_RUNNING;
}

/* The number is in memory before it is at the port: whoever saw it there finds it, or a later one, here. */
static void beat(u64 now)
{
	u64 gap = now - status_page->beat_tsc;

	if (status_page->beat && gap > status_page->largest_gap_tsc)
		status_page->largest_gap_tsc = gap;
	status_page->beat_tsc = now;
	status_page->beat++;
	out32(HEARTBEAT_PORT, status_page->beat);
}

static void write_step(volatile struct vcpu *page, struct clockwork *clock)
{
	u32 stamp = (u32)page->pages_written, count = page->step;
	u32 first = page->ws_first_page << 12;

	if (page->pattern == PATTERN_SWEEP) {
		if (count > page->ws_pages - clock->position)
			count = page->ws_pages - clock->position;
		write_sweep(first + (clock->position << 12), page->table + clock->position * 4,
			    stamp + count, count);
		clock->position += count;
		if (clock->position == page->ws_pages)
			clock->position = 0;
	} else if (page->pattern == PATTERN_ZIPF) {
		clock->seed = write_zipf(first, page->ws_pages, page->table, stamp, clock->seed,
					 count, clock->octaves);
	} else {
		clock->seed = write_uniform(first, page->ws_pages, page->table, stamp,
					    clock->seed, count);
	}
	page->pages_written += count;
}

/* The next step is due. Time lost in a pause is given up, not caught up, beyond 10 ms. */
static void advance_step(volatile struct vcpu *page, struct clockwork *clock, u64 interval, u64 now)
{
	clock->next_step += interval;
	if (now > clock->next_step + cycles_of_ms(10)) {
		page->forgiven_tsc += now - clock->next_step;
		clock->next_step = now;
	}
}

static u64 read_clock(u32 index, struct clockwork *clock)
{
	u64 now = rdtsc();

	if (now < clock->last_tsc) {
		vcpu_page(index)->tsc_backwards++;
		if (index == 0)
			status_page->tsc_backwards++;
		clock->next_beat = clock->next_step = clock->next_publish = now;
		clock->next_phase = now;
	}
	clock->last_tsc = now;
	return now;
}

static void compute(volatile struct vcpu *page, struct clockwork *clock, u64 now)
{
	count_loops(LOOPS);
	clock->loops += LOOPS;
	if (now >= clock->next_publish) {
		page->loops = clock->loops;
		clock->next_publish = now + cycles_of_ms(1);
	}
}

/* Bursts and calm in turn. A phase that was slept through in a pause is not made up for. */
static void advance_phase(volatile struct vcpu *page, struct clockwork *clock, u64 now)
{
	u64 length;

	clock->resting = !clock->resting;
	length = cycles_of_ms(clock->resting ? page->off_ms : page->on_ms);
	clock->next_phase += length;
	if (clock->next_phase <= now)
		clock->next_phase = now + length;
	clock->next_step = now;
}

void work(u32 index)
{
	volatile struct vcpu *page = vcpu_page(index);
	struct clockwork *clock = &clockworks[index];
	u64 period = cycles_of_ms(config.beat_ms), interval = 0;

	if (page->rate != 0 && page->rate != RATE_MAX)
		interval = divide((u64)page->step * config.tsc_khz * 1000, page->rate);
	clock->next_beat = clock->next_step = clock->next_publish = rdtsc();
	clock->next_phase = clock->next_beat + cycles_of_ms(page->on_ms);
	for (;;) {
		u64 now = read_clock(index, clock), wake = ~0ull;

		if (index == 0) {
			if (now >= clock->next_beat) {
				beat(now);
				clock->next_beat += period;
				if (clock->next_beat <= now)
					clock->next_beat = now + period;
			}
			wake = clock->next_beat;
		}
		if (page->role == ROLE_COMPUTE) {
			compute(page, clock, now);
			continue;
		}
		if (page->on_ms) {
			if (now >= clock->next_phase)
				advance_phase(page, clock, now);
			if (clock->next_phase < wake)
				wake = clock->next_phase;
		}
		if (page->rate == RATE_MAX && !clock->resting) {
			write_step(page, clock);
			continue;
		}
		if (page->rate && !clock->resting) {
			if (now >= clock->next_step) {
				write_step(page, clock);
				advance_step(page, clock, interval, now);
				continue;
			}
			if (clock->next_step < wake)
				wake = clock->next_step;
		}
		page->halts++;
		wait_tsc(wake - now);
	}
}
