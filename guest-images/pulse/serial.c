/* Lines on the first serial port: one at the start, or one that says why there is none. */
#include "pulse.h"

#define COM1		0x3f8
#define LINE_STATUS	(COM1 + 5)
#define THR_EMPTY	0x20

static void put(char c)
{
	/* Bounded, so that a machine without a serial port still runs. */
	for (u32 i = 0; i < 10000 && !(in8(LINE_STATUS) & THR_EMPTY); i++)
		;
	out8(COM1, (u8)c);
}

void print(const char *text)
{
	while (*text)
		put(*text++);
}

void print_number(u32 number)
{
	char digits[11];
	u32 i = sizeof digits - 1;

	digits[i] = 0;
	do
		digits[--i] = (char)('0' + number % 10);
	while (number /= 10);
	print(digits + i);
}

void refuse(const char *why, const char *word)
{
	status_page->state = STATE_REFUSED;
	print("pulse: ");
	print(why);
	print(word);
	print("\n");
	for (;;)
		__asm__ volatile("cli; hlt");
}
