//! Registers of a virtio device as memory of the guest, on this machine's /dev/kvm: reads stay inside, writes come out.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use devices::bus::{Action, BusDevice};
use devices::virtio::{INTERRUPT_ACK, MmioParts, VirtioMmio, VirtioRng};
use kvm_bindings::kvm_regs;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};
use vmm::kvm::{self, tiny};
use vmm::layout::{Transport, memory_layout, slot_address};
use vmm::memory::{self, Backing};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Reads a register and says what it was, writes it elsewhere in the page, and begins again.
const READER: [u8; 8] = [
    0x8b, 0x07, // 1: mov eax, [edi]
    0xe7, 0x10, // out DONE_PORT, eax
    0x89, 0x06, // mov [esi], eax
    0xeb, 0xf8, // jmp 1b
];
/// The place of the slot among the others; not the first.
const SLOT: u32 = 1;
const DEVICE_ID: u64 = 0x8;
const INTERRUPT_STATUS: u64 = 0x60;

/// Has the guest read the register at `offset`, and gives what it read and what comes out behind that.
fn read(vcpu: &mut VcpuFd, offset: u64) -> (u32, u64, u32) {
    let base = slot_address(SLOT);
    let regs = kvm_regs {
        rdi: base + offset,
        rsi: base + INTERRUPT_ACK.0,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).unwrap();
    let word = |data: &[u8]| u32::from_le_bytes(data.try_into().unwrap());
    let read = match vcpu.run().unwrap() {
        VcpuExit::IoOut(tiny::DONE_PORT, data) => word(data),
        other => panic!("the read left with {other:?}"),
    };
    match vcpu.run().unwrap() {
        VcpuExit::MmioWrite(address, data) => (read, address, word(data)),
        other => panic!("the write left with {other:?}"),
    }
}

#[test]
fn a_register_is_read_inside_and_written_outside() {
    let kvm = kvm::open().unwrap();
    let vm = kvm::create_vm(&kvm).unwrap();
    let ram = memory::map(&memory_layout(64 << 20).unwrap(), Backing::Anonymous).unwrap();
    ram.write_slice(&READER, GuestAddress(0)).unwrap();
    memory::register(&vm, &ram, false).unwrap();
    let pages = memory::show_registers(&kvm, &vm, 2, Transport::Mmio).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    tiny::enter_protected_mode(&vcpu).unwrap();

    let event = || EventFd::new(EFD_NONBLOCK).unwrap();
    let mut device = VirtioMmio::new(MmioParts {
        ram,
        interrupts: Box::new(event()),
        queue_events: vec![event()],
        page: Arc::clone(&pages[SLOT as usize]),
        device: Box::new(VirtioRng::new()),
    })
    .unwrap();
    let acknowledged = slot_address(SLOT) + INTERRUPT_ACK.0;
    assert_eq!(read(&mut vcpu, DEVICE_ID), (4, acknowledged, 4));
    assert_eq!(read(&mut vcpu, INTERRUPT_STATUS), (0, acknowledged, 0));
    assert_eq!(read(&mut vcpu, 0xffc).0, 0, "nothing else is there");
    // What the host changes the guest sees at once, though it never comes out for it.
    device.resume();
    device.config_changed();
    assert_eq!(read(&mut vcpu, INTERRUPT_STATUS).0, 0, "no driver is there");
    for status in [1u32, 3] {
        let done = device.write(0x70, &status.to_le_bytes());
        assert_eq!(done, Action::None);
        assert_eq!(read(&mut vcpu, 0x70).0, status);
    }
    // The pages are the last to go.
    drop((vcpu, vm));
}
