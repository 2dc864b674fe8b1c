/* The command line: words separated by blanks, `key=value`, with `cpuN.` before the keys of one vCPU. */
#include "pulse.h"

#define START_INFO_MAGIC	0x336ec578
#define MAX_LINE		2048
#define MAX_MAP			32
#define MEMORY_RAM		1

/* xen/include/public/arch-x86/hvm/start_info.h, version 1. */
struct start_info {
	u32 magic;
	u32 version;
	u32 flags;
	u32 modules;
	u64 modlist;
	u64 cmdline;
	u64 rsdp;
	u64 memmap;
	u32 memmap_entries;
};

struct map_entry {
	u64 start;
	u64 size;
	u32 type;
	u32 reserved;
};

struct config config;
static char line[MAX_LINE];
static struct map_entry map[MAX_MAP];
static u32 map_entries;

/* Whether `*text` begins with `prefix`; if so, moves behind it. */
static int skip(const char **text, const char *prefix)
{
	const char *at = *text;

	while (*prefix)
		if (*at++ != *prefix++)
			return 0;
	*text = at;
	return 1;
}

static int equal(const char *a, const char *b)
{
	return skip(&a, b) && !*a;
}

/* A decimal number of at most 9 digits; moves behind it. */
static int number(const char **text, u32 *value)
{
	u32 digits = 0;

	for (*value = 0; **text >= '0' && **text <= '9'; (*text)++, digits++) {
		if (digits == 9)
			return 0;
		*value = *value * 10 + (u32)(**text - '0');
	}
	return digits != 0;
}

static int number_within(const char *text, u32 least, u32 most, u32 *value)
{
	return number(&text, value) && !*text && *value >= least && *value <= most;
}

static int working_set(const char *text, struct cpu_config *cpu)
{
	return number(&text, &cpu->ws_base_mib) && skip(&text, ":") &&
	       number(&text, &cpu->ws_mib) && !*text && cpu->ws_base_mib >= WS_MIN_MIB &&
	       cpu->ws_mib >= 1 && cpu->ws_base_mib <= WS_END_MIB &&
	       cpu->ws_mib <= WS_END_MIB - cpu->ws_base_mib;
}

static int choice(const char *text, const char *zero, const char *one, u32 base, u32 *value)
{
	if (equal(text, zero))
		*value = base;
	else if (equal(text, one))
		*value = base + 1;
	else
		return 0;
	return 1;
}

static int phases(const char *text, struct cpu_config *cpu)
{
	return number(&text, &cpu->on_ms) && skip(&text, ":") && number(&text, &cpu->off_ms) &&
	       !*text && cpu->on_ms >= 1 && cpu->off_ms >= 1 && cpu->on_ms <= MAX_PHASE_MS &&
	       cpu->off_ms <= MAX_PHASE_MS;
}

static int cpu_word(const char *word, struct cpu_config *cpu)
{
	if (skip(&word, "ws="))
		return working_set(word, cpu);
	if (skip(&word, "phases="))
		return phases(word, cpu);
	if (skip(&word, "pattern=")) {
		if (equal(word, "zipf")) {
			cpu->pattern = PATTERN_ZIPF;
			return 1;
		}
		return choice(word, "uniform", "sweep", PATTERN_UNIFORM, &cpu->pattern);
	}
	if (skip(&word, "role="))
		return choice(word, "write", "compute", ROLE_WRITE, &cpu->role);
	if (!skip(&word, "rate="))
		return 0;
	if (equal(word, "max")) {
		cpu->rate = RATE_MAX;
		return 1;
	}
	return number_within(word, 0, 10000000, &cpu->rate);
}

static int understand(const char *word)
{
	u32 index;

	if (skip(&word, "cpus="))
		return number_within(word, 1, MAX_CPUS, &config.cpus);
	if (skip(&word, "beat="))
		return number_within(word, 1, 10000, &config.beat_ms);
	if (skip(&word, "tsc_khz="))
		return number_within(word, 10000, 10000000, &config.tsc_khz);
	if (skip(&word, "wait="))
		return choice(word, "hlt", "spin", 0, &config.spin);
	if (skip(&word, "cpu"))
		return number(&word, &index) && index < MAX_CPUS && skip(&word, ".") &&
		       cpu_word(word, &config.cpu[index]);
	return cpu_word(word, &config.cpu[0]);
}

/* The loader may have put its data where the trampoline goes, so everything is copied first. */
static void copy_start_info(const struct start_info *info)
{
	const char *text = (const char *)(u32)info->cmdline;
	const struct map_entry *entries = (const struct map_entry *)(u32)info->memmap;

	if (info->magic != START_INFO_MAGIC)
		refuse("not entered by PVH", "");
	for (u32 i = 0; text && text[i]; i++) {
		if (i == MAX_LINE - 1)
			refuse("bad parameter ", "(command line too long)");
		line[i] = text[i];
	}
	if (info->version >= 1 && entries && info->memmap_entries <= MAX_MAP)
		for (; map_entries < info->memmap_entries; map_entries++)
			map[map_entries] = entries[map_entries];
}

static int is_ram(const struct cpu_config *cpu)
{
	u64 start = (u64)cpu->ws_base_mib << 20, end = start + ((u64)cpu->ws_mib << 20);

	for (u32 i = 0; i < map_entries; i++)
		if (map[i].type == MEMORY_RAM && start >= map[i].start &&
		    end <= map[i].start + map[i].size)
			return 1;
	return map_entries == 0;
}

static void check_working_sets(void)
{
	for (u32 i = 0; i < MAX_CPUS; i++) {
		const struct cpu_config *a = &config.cpu[i];

		if (a->ws_mib && !is_ram(a))
			refuse("bad parameter ", "ws (not all of it is memory)");
		if (a->rate && (!a->ws_mib || a->role == ROLE_COMPUTE))
			refuse("bad parameter ", "rate (without ws, or with role=compute)");
		if (a->on_ms && !a->rate)
			refuse("bad parameter ", "phases (without rate)");
		if (i >= config.cpus && (a->ws_mib || a->rate || a->role != ROLE_WRITE))
			refuse("bad parameter ", "cpuN (no such vCPU, see cpus=)");
		for (u32 j = 0; j < i; j++) {
			const struct cpu_config *b = &config.cpu[j];

			if (a->ws_mib && b->ws_mib && a->ws_base_mib < b->ws_base_mib + b->ws_mib &&
			    b->ws_base_mib < a->ws_base_mib + a->ws_mib)
				refuse("bad parameter ", "ws (two of them overlap)");
		}
	}
}

void parse_parameters(const void *start_info)
{
	config.cpus = 1;
	config.beat_ms = 1;
	for (u32 i = 0; i < MAX_CPUS; i++)
		config.cpu[i].role = ROLE_WRITE;
	copy_start_info(start_info);
	for (char *at = line; *at;) {
		char *word = at;
		int last;

		while (*at && *at != ' ')
			at++;
		last = !*at;
		*at = 0;
		if (*word && !understand(word))
			refuse("bad parameter ", word);
		at += !last;
	}
	check_working_sets();
}
