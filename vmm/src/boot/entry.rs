//! How the first vCPU begins: its registers, and the tables in memory that they point to.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use migration::guest::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::layout::{BOOT_PARAMS, BOOT_STACK, GDT_START, PAGE_TABLES, PVH_START_INFO};

/// CR0: protected mode.
const CR0_PE: u64 = 1;
/// CR0: extension type; always 1 on anything since the 486.
const CR0_ET: u64 = 1 << 4;
/// CR0: paging.
const CR0_PG: u64 = 1 << 31;
/// CR4: physical address extension, which long mode requires.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled and active.
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
/// RFLAGS: the bit that is always set. Interrupts are off.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// Page table entry: present and writable.
const PTE_RW: u64 = 0b11;
/// Page directory entry: a page of 2 MiB.
const PTE_LARGE: u64 = 1 << 7;

/// The selectors of code and data: Linux's __BOOT_CS and __BOOT_DS (boot.rst, "64-bit Boot Protocol").
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;

/// How a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Linux's 64-bit boot protocol: long mode, the low 4 GiB mapped one to one.
    Linux64,
    /// PVH: flat 32-bit protected mode without paging.
    Pvh,
}

/// How the first vCPU begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The protocol.
    pub protocol: Protocol,
    /// Guest-physical address of the first instruction.
    pub rip: u64,
    /// Guest-physical address of what the kernel is told: [`BOOT_PARAMS`] or [`PVH_START_INFO`].
    pub info: u64,
}

impl Entry {
    /// Into a bzImage whose protected-mode part lies at `kernel`.
    pub(super) fn linux(kernel: u64) -> Self {
        Self {
            protocol: Protocol::Linux64,
            rip: kernel + 0x200,
            info: BOOT_PARAMS,
        }
    }

    /// Into an ELF kernel at its PVH entry.
    pub(super) fn pvh(entry: u32) -> Self {
        Self {
            protocol: Protocol::Pvh,
            rip: u64::from(entry),
            info: PVH_START_INFO,
        }
    }

    /// Sets the registers of the first vCPU. `sregs` come from the vCPU as it is after its creation and keep
    /// what the protocols do not name: the APIC base, CR8.
    ///
    /// Linux64: boot.rst asks for paging with the kernel, the boot params and the command line mapped one to
    /// one, flat 4 GiB segments with those selectors, interrupts off and RSI at the boot params.
    /// PVH: start_info.h asks for EBX at the start info, CR0.PE alone, CR4 zero, flat 32-bit segments, a TSS
    /// with base 0 and limit 0x67, and EFLAGS without IF, TF and VM.
    pub fn apply(&self, regs: &mut kvm_regs, sregs: &mut kvm_sregs) {
        *regs = kvm_regs {
            rip: self.rip,
            rflags: RFLAGS_RESERVED,
            ..Default::default()
        };
        let long = self.protocol == Protocol::Linux64;
        let data = segment(DATA_SELECTOR, data_type(), false);
        sregs.cs = segment(CODE_SELECTOR, code_type(), long);
        (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
        (sregs.fs, sregs.gs) = (data, data);
        sregs.tr = task();
        sregs.ldt = kvm_segment {
            unusable: 1,
            ..Default::default()
        };
        sregs.gdt = kvm_dtable {
            base: GDT_START,
            limit: 4 * 8 - 1,
            ..Default::default()
        };
        sregs.idt = kvm_dtable::default();
        sregs.cr2 = 0;
        match self.protocol {
            Protocol::Linux64 => {
                regs.rsi = self.info;
                regs.rsp = BOOT_STACK;
                sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
                sregs.cr3 = PAGE_TABLES;
                sregs.cr4 = CR4_PAE;
                sregs.efer = EFER_LME_LMA;
            }
            Protocol::Pvh => {
                regs.rbx = self.info;
                sregs.cr0 = CR0_PE | CR0_ET;
                sregs.cr3 = 0;
                sregs.cr4 = 0;
                sregs.efer = 0;
            }
        }
    }

    /// Writes the GDT and, for long mode, the page tables.
    pub(super) fn write_tables(&self, ram: &GuestRam) -> Result<(), BootError> {
        let long = self.protocol == Protocol::Linux64;
        let gdt = [
            0,
            0,
            descriptor(&segment(CODE_SELECTOR, code_type(), long)),
            descriptor(&segment(DATA_SELECTOR, data_type(), false)),
        ];
        write_words(ram, GDT_START, &gdt).map_err(|source| BootError::write("GDT", source))?;
        if !long {
            return Ok(());
        }
        write_words(ram, PAGE_TABLES, &page_tables())
            .map_err(|source| BootError::write("page tables", source))
    }
}

/// Maps the low 4 GiB one to one: PML4 -> PDPT -> four page directories of 512 pages of 2 MiB.
fn page_tables() -> Vec<u64> {
    const ENTRIES: usize = 512;
    let table = |index: u64| PAGE_TABLES + index * 0x1000;
    let mut words = vec![0; 2 * ENTRIES];
    words[0] = table(1) | PTE_RW;
    for (index, word) in (0..4).zip(&mut words[ENTRIES..]) {
        *word = table(2 + index) | PTE_RW;
    }
    words.extend((0..4 * 512).map(|page| page << 21 | PTE_LARGE | PTE_RW));
    words
}

fn write_words(ram: &GuestRam, gpa: u64, words: &[u64]) -> Result<(), vm_memory::GuestMemoryError> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    ram.write_slice(&bytes, GuestAddress(gpa))
}

/// Code, readable, accessed.
fn code_type() -> u8 {
    0b1011
}

/// Data, writable, accessed.
fn data_type() -> u8 {
    0b0011
}

/// A flat 4 GiB segment. `long` makes it 64-bit code.
fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

/// A busy 32-bit or 64-bit TSS of the least size. It is never used, but VMX refuses to enter a guest without.
fn task() -> kvm_segment {
    kvm_segment {
        limit: 0x67,
        type_: 0b1011,
        present: 1,
        ..Default::default()
    }
}

/// The segment as a GDT entry (Intel SDM vol. 3, 3.4.5): 20 bits of limit in units of 4 KiB, base 0.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(segment.limit >> 12);
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    limit & 0xffff | access << 40 | (limit >> 16) << 48 | flags << 52
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{KERNEL_START, LOW_RAM_END};

    fn ram() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap()
    }

    fn word(ram: &GuestRam, gpa: u64) -> u64 {
        let mut bytes = [0; 8];
        ram.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// What a CPU makes of a virtual address (Intel SDM vol. 3, 4.5).
    fn translate(ram: &GuestRam, root: u64, address: u64) -> Option<u64> {
        let mut table = root;
        for shift in [39, 30, 21] {
            let entry = word(ram, table + (address >> shift & 0x1ff) * 8);
            if entry & PTE_RW != PTE_RW {
                return None;
            }
            if entry & PTE_LARGE != 0 {
                return Some((entry & !0x1f_ffff) + (address & 0x1f_ffff));
            }
            table = entry & !0xfff;
        }
        None
    }

    #[test]
    fn linux_is_entered_in_long_mode() {
        let ram = ram();
        let entry = Entry::linux(KERNEL_START);
        entry.write_tables(&ram).unwrap();
        let (mut regs, mut sregs) = (kvm_regs::default(), kvm_sregs::default());
        sregs.apic_base = 0xfee0_0900;
        entry.apply(&mut regs, &mut sregs);
        assert_eq!((regs.rip, regs.rsi, regs.rflags), (0x10_0200, 0x7000, 2));
        assert_eq!((sregs.cr0, sregs.cr4), (0x8000_0011, 0x20));
        assert_eq!((sregs.efer, sregs.apic_base), (0x500, 0xfee0_0900));
        assert_eq!((sregs.cs.l, sregs.cs.db), (1, 0));
        for address in [0, 0x7008, LOW_RAM_END - 1, 0xfee0_0020, 0xffff_ffff] {
            assert_eq!(translate(&ram, sregs.cr3, address), Some(address));
        }
        assert_eq!(translate(&ram, sregs.cr3, 1 << 32), None);
        assert_eq!(word(&ram, sregs.gdt.base + 0x10), 0x00af_9b00_0000_ffff);
        assert_eq!(word(&ram, sregs.gdt.base + 0x18), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn pvh_is_entered_in_flat_protected_mode() {
        let ram = ram();
        let entry = Entry::pvh(0x20_0010);
        entry.write_tables(&ram).unwrap();
        let (mut regs, mut sregs) = (kvm_regs::default(), kvm_sregs::default());
        entry.apply(&mut regs, &mut sregs);
        assert_eq!((regs.rip, regs.rbx, regs.rflags), (0x20_0010, 0x5000, 2));
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x11, 0, 0));
        assert_eq!((sregs.cs.l, sregs.cs.db), (0, 1));
        assert_eq!((sregs.tr.base, sregs.tr.limit), (0, 0x67));
        assert_eq!(word(&ram, sregs.gdt.base + 0x10), 0x00cf_9b00_0000_ffff);
        assert_eq!(word(&ram, PAGE_TABLES), 0);
    }
}
