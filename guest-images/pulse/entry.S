/*
 * How pulse gets onto a processor, and the few loops that are counted in instructions.
 *
 * Everything runs in 32-bit flat protected mode without paging. An interrupt handler never ends with
 * IRET: it drops the interrupt frame and returns to the caller of wait_for_interrupt, the only place
 * where interrupts are enabled, because KVM's instruction emulator knows no IRET in protected mode.
 */
#include "pulse.h"

/* PVH: entry in 32-bit mode at the address of note 18, XEN_ELFNOTE_PHYS32_ENTRY (Xen docs/misc/pvh.pandoc). */
	.section .note.pulse, "a", @note
	.balign 4
	.long	4, 8, 18		/* size of the name, size of the descriptor, type */
	.asciz	"Xen"
	.long	entry, 0

	.text
	.code32
	.globl	entry
/* vCPU 0; ebx = GPA of the start info. */
entry:
	cli
	cld
	lgdt	gdt_pointer
	ljmp	$SELECTOR_CODE, $1f
1:	movl	$SELECTOR_DATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	$bss_start, %edi
	movl	$bss_end, %ecx
	subl	%edi, %ecx
	shrl	$2, %ecx
	xorl	%eax, %eax
	rep stosl
	movl	$(stacks + STACK_SIZE), %esp
	lidt	idt_pointer
	pushl	%ebx
	call	boot_cpu

/* Every other vCPU, from the trampoline. */
other_entry:
	cld
	movl	$SELECTOR_DATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	APIC_ID, %eax
	shrl	$24, %eax
	movl	%eax, %ecx
	incl	%ecx
	imull	$STACK_SIZE, %ecx, %ecx
	leal	stacks(%ecx), %esp
	lidt	idt_pointer
	pushl	%eax
	call	other_cpu

/* Copied to TRAMPOLINE; a SIPI enters it in real mode with CS:IP = 0x0800:0000. */
	.globl	trampoline_start, trampoline_end
	.code16
trampoline_start:
	cli
	lgdtl	%cs:(trampoline_gdt - trampoline_start)
	movl	%cr0, %eax
	orl	$1, %eax
	movl	%eax, %cr0
	ljmpl	$SELECTOR_CODE, $other_entry
	.balign 4
trampoline_gdt:
	.word	gdt_end - gdt - 1
	.long	gdt
trampoline_end:
	.code32

/* Sleeps until the timer's interrupt. */
	.globl	wait_for_interrupt
wait_for_interrupt:
	sti
	hlt
	jmp	wait_for_interrupt

	.globl	timer_interrupt
timer_interrupt:
	movl	$0, APIC_EOI
	addl	$12, %esp		/* eip, cs, eflags; the gate has cleared IF */
	ret				/* of wait_for_interrupt */

/*
 * One write to a page drawn by a multiplicative generator (Lehmer, modulo 2^32: esi is odd, its high bits
 * are good). Order of the stores: table, head, tail. 8 instructions, since every one of them is emulated.
 */
	.macro	write_one
	imull	$0x915f77f5, %esi, %esi
	movl	%esi, %eax
	mull	24(%esp)		/* edx = eax * pages / 2^32 */
	incl	%ebx
	movl	%ebx, (%ebp,%edx,4)
	shll	$12, %edx
	movl	%ebx, (%edi,%edx)
	movl	%ebx, 4092(%edi,%edx)
	.endm

/*
 * u32 write_uniform(first_address, pages, table, stamp, seed, count): `count` writes with stamps stamp+1,
 * stamp+2, ...; returns the generator's new state.
 */
	.globl	write_uniform
write_uniform:
	pushl	%ebp
	pushl	%ebx
	pushl	%esi
	pushl	%edi
	movl	20(%esp), %edi
	movl	28(%esp), %ebp
	movl	32(%esp), %ebx
	movl	36(%esp), %esi
	movl	40(%esp), %ecx
1:	subl	$8, %ecx
	jb	2f
	.rept	8
	write_one
	.endr
	jmp	1b
2:	addl	$8, %ecx
	jz	4f
3:	write_one
	decl	%ecx
	jnz	3b
4:	movl	%esi, %eax
	popl	%edi
	popl	%esi
	popl	%ebx
	popl	%ebp
	ret

/*
 * u32 write_zipf(first_address, pages, table, stamp, seed, count, octaves): as write_uniform, with the pages drawn by
 * Zipf's law, exponent 1: a page's probability falls as 1 / its rank. Ranks are cut into octaves, each half as long as
 * the one after it: [pages >> 1, pages), [pages >> 2, pages >> 1), ..., the last of them [0, 1). One draw gives the
 * octave, each as probable, and by what is left of its digits the rank within it, each as probable. The page of a rank
 * is rank * SCATTER modulo pages: SCATTER is a prime greater than any working set, so each page has one rank, and hot
 * pages lie apart as those of a hash table do. About 21 instructions a write.
 */
	.globl	write_zipf
write_zipf:
	pushl	%ebp
	pushl	%ebx
	pushl	%esi
	pushl	%edi
	movl	20(%esp), %edi
	movl	28(%esp), %ebp
	movl	32(%esp), %ebx
	movl	36(%esp), %esi
1:	imull	$0x915f77f5, %esi, %esi
	movl	%esi, %eax
	mull	44(%esp)		/* edx = octave, eax = the rest, as a fraction of 2^32 */
	movl	%edx, %ecx
	movl	24(%esp), %edx
	shrl	%cl, %edx		/* where the octave ends */
	movl	%edx, %ecx
	shrl	$1, %ecx		/* where it begins */
	subl	%ecx, %edx
	mull	%edx			/* edx = rest * length of the octave / 2^32 */
	leal	(%ecx,%edx), %eax	/* the rank */
	mull	scatter
	divl	24(%esp)		/* edx = the page; rank < pages, so the quotient fits */
	incl	%ebx
	movl	%ebx, (%ebp,%edx,4)
	shll	$12, %edx
	movl	%ebx, (%edi,%edx)
	movl	%ebx, 4092(%edi,%edx)
	decl	40(%esp)
	jnz	1b
	movl	%esi, %eax
	popl	%edi
	popl	%esi
	popl	%ebx
	popl	%ebp
	ret

/*
 * void write_sweep(address, table_entry, stamp, count): `count` neighbouring pages get the same stamp,
 * first all of the table, then the pages, ascending, head before tail. 2 instructions a page.
 */
	.globl	write_sweep
write_sweep:
	pushl	%edi
	movl	8(%esp), %edx
	movl	12(%esp), %edi
	movl	16(%esp), %eax
	movl	20(%esp), %ecx
	rep stosl
	movl	20(%esp), %ecx
	cmpl	$64, %ecx
	jb	2f
1:
	.set	page, 0
	.rept	64
	movl	%eax, (page * 4096)(%edx)
	movl	%eax, (page * 4096 + 4092)(%edx)
	.set	page, page + 1
	.endr
	addl	$(64 * 4096), %edx
	subl	$64, %ecx
	cmpl	$64, %ecx
	jae	1b
2:	testl	%ecx, %ecx
	jz	4f
3:	movl	%eax, (%edx)
	movl	%eax, 4092(%edx)
	addl	$4096, %edx
	decl	%ecx
	jnz	3b
4:	popl	%edi
	ret

/* void count_loops(count): two instructions a loop. */
	.globl	count_loops
count_loops:
	movl	4(%esp), %ecx
1:	decl	%ecx
	jnz	1b
	ret

	.data
	.balign 8
gdt:	.quad	0
	.quad	0x00cf9b000000ffff	/* code: base 0, limit 4 GiB, 32 bits */
	.quad	0x00cf93000000ffff	/* data: the same */
gdt_end:
	.balign 4
gdt_pointer:
	.word	gdt_end - gdt - 1
	.long	gdt
	.balign 4
idt_pointer:
	.word	(TIMER_VECTOR + 1) * 8 - 1
	.long	idt

scatter:
	.long	SCATTER

/* One interrupt gate. Exceptions have none: a fault of pulse itself is a triple fault, seen by the VMM. */
	.balign 8
idt:	.fill	TIMER_VECTOR, 8, 0
	.word	timer_interrupt_low, SELECTOR_CODE, 0x8e00, timer_interrupt_high

	.bss
	.balign 16
stacks:	.skip	MAX_CPUS * STACK_SIZE
