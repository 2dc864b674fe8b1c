/*
 * What the rooms of pulse share: addresses, the pages that the outside reads, and processor access.
 *
 * guest-images/src/pulse.rs describes the same addresses and layouts to the outside; the tests on KVM hold
 * the two together.
 */
#ifndef PULSE_H
#define PULSE_H

/*
 * Guest-physical memory, from the bottom:
 *
 *   0x00008000  trampoline of the other vCPUs (real mode, SIPI vector 8)
 *   0x00100000  image, variables, stacks
 *   0x00110000  status page
 *   0x00111000  one page a vCPU
 *   0x00200000  stamp tables, one u32 for each page of a working set
 *   0x00800000  working sets, and memory that pulse never touches
 */
#define TRAMPOLINE	0x00008000
#define IMAGE		0x00100000
#define STATUS		0x00110000
#define VCPU_PAGES	0x00111000
#define TABLES		0x00200000
#define WS_MIN_MIB	8
#define WS_END_MIB	3584

#define MAX_CPUS	16
#define STACK_SIZE	2048

#define SELECTOR_CODE	0x08
#define SELECTOR_DATA	0x10

/* Local APIC registers (Intel SDM volume 3, table 11-1). */
#define APIC_ID		0xfee00020
#define APIC_EOI	0xfee000b0
#define APIC_SPURIOUS	0xfee000f0
#define APIC_ICR_LOW	0xfee00300
#define APIC_ICR_HIGH	0xfee00310
#define APIC_LVT_TIMER	0xfee00320
#define APIC_LVT_LINT0	0xfee00350
#define APIC_INITIAL	0xfee00380
#define APIC_CURRENT	0xfee00390
#define APIC_DIVIDE	0xfee003e0

#define TIMER_VECTOR	0x20

/* The most pages that one step of work writes. */
#define MAX_STEP	1024
/* The most ms of a burst, or of the calm after it. */
#define MAX_PHASE_MS	60000
/* What spreads the ranks of pattern=zipf over the pages: a prime. */
#define SCATTER		0x9e3779b1

#ifndef __ASSEMBLER__

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

enum { STATE_STARTING = 1, STATE_RUNNING = 2, STATE_REFUSED = 3 };
enum { ROLE_WRITE = 1, ROLE_COMPUTE = 2 };
enum { PATTERN_UNIFORM = 0, PATTERN_SWEEP = 1, PATTERN_ZIPF = 2 };
#define RATE_MAX	0xffffffffu

/* The status page. */
struct status {
	char magic[8];
	u32 version;
	u32 cpus;
	u32 tsc_khz;
	u32 state;
	u32 beat;
	u32 beat_ms;
	u64 beat_tsc;
	u64 largest_gap_tsc;
	u32 tsc_backwards;
};

/* The page of one vCPU. `pages_written` is stored when a step is done, never in the middle of one. */
struct vcpu {
	u32 state;
	u32 role;
	u32 pattern;
	u32 rate;
	u32 ws_first_page;
	u32 ws_pages;
	u32 table;
	u32 step;
	u64 pages_written;
	u64 loops;
	u64 forgiven_tsc;
	u32 halts;
	u32 tsc_backwards;
	u32 on_ms;
	u32 off_ms;
};

#define status_page ((volatile struct status *)STATUS)
#define vcpu_page(i) ((volatile struct vcpu *)(VCPU_PAGES + ((i) << 12)))

/* What the command line asks of one vCPU. */
struct cpu_config {
	u32 ws_base_mib;
	u32 ws_mib;
	u32 rate;
	u32 pattern;
	u32 role;
	u32 on_ms;
	u32 off_ms;
};

struct config {
	u32 beat_ms;
	u32 cpus;
	u32 tsc_khz;
	u32 spin;
	struct cpu_config cpu[MAX_CPUS];
};

extern struct config config;

/* params.c: fills `config`; on a word that makes no sense says so and stops. */
void parse_parameters(const void *start_info);
/* serial.c */
void print(const char *text);
void print_number(u32 number);
__attribute__((noreturn)) void refuse(const char *why, const char *word);
/* time.c */
u32 measure_tsc_khz(void);
void set_up_timer(void);
void wait_tsc(u64 cycles);
/* work.c */
void prepare(u32 index);
__attribute__((noreturn)) void work(u32 index);
/* entry.S */
void wait_for_interrupt(void);
u32 write_uniform(u32 first_address, u32 pages, u32 table, u32 stamp, u32 seed, u32 count);
u32 write_zipf(u32 first_address, u32 pages, u32 table, u32 stamp, u32 seed, u32 count, u32 octaves);
void write_sweep(u32 address, u32 table_entry, u32 stamp, u32 count);
void count_loops(u32 count);

static inline void out8(u16 port, u8 value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void out32(u16 port, u32 value)
{
	__asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline u8 in8(u16 port)
{
	u8 value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline u64 rdtsc(void)
{
	u64 tsc;

	__asm__ volatile("rdtsc" : "=A"(tsc));
	return tsc;
}

static inline u32 apic_read(u32 reg)
{
	return *(volatile u32 *)reg;
}

static inline void apic_write(u32 reg, u32 value)
{
	*(volatile u32 *)reg = value;
}

/* 64 by 32 bits without the compiler's library. */
static inline u64 divide(u64 n, u32 d)
{
	u32 high = (u32)(n >> 32), quotient_high = high / d, rest = high % d, low;

	__asm__("divl %2" : "=a"(low), "+d"(rest) : "r"(d), "a"((u32)n));
	return (u64)quotient_high << 32 | low;
}

#endif
#endif
