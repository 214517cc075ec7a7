"""Can this machine's /dev/kvm run ordinary guests at speed? Asked by running two tiny ones, since nothing else tells.

A module that serves only paravirtual guests answers every question right and then emulates each instruction: a loop
takes hundreds of times too long, and an instruction that its emulator does not know ends the guest.
"""

import ctypes
import fcntl
import mmap
import os
import struct
import sys
import time

import msgspec

SYSTEM = {"create_vm": 0xAE01, "vcpu_mmap_size": 0xAE04, "supported_cpuid": 0xC008AE05}
SET_USER_MEMORY_REGION, SET_TSS_ADDR, CREATE_VCPU = 0x4020AE46, 0xAE47, 0xAE41
SET_CPUID2, RUN, GET_SREGS, SET_SREGS, SET_REGS = 0x4008AE90, 0xAE80, 0x8138AE83, 0x4138AE84, 0x4090AE82
EXIT_HLT = 5
MEMORY = 2 << 20
CODE_AT, TABLES_AT = 0x1000, 0x10000

COUNT_DOWN = bytes.fromhex("b9a0860100 ffc9 75fc f4")  # mov ecx,100000; dec ecx; jnz; hlt
SHIFT = bytes.fromhex("c46271f7c0 f4")  # shlx r8d,eax,ecx (BMI2); hlt
MAX_LOOP_S = 0.004  # of processor time; hardware needs a tenth of a millisecond


class KvmFinding(msgspec.Struct, frozen=True, kw_only=True):
    """`hardware`: guests run at the processor's speed."""

    hardware: bool
    why_not: str | None = None
    loop_ms: float | None = None


def probe_kvm() -> KvmFinding:
    """Run both guests in a child process that is ended after twenty seconds, whatever the module does."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read_fd)
            import signal

            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)
            os.write(write_fd, msgspec.json.encode(_probe()))
            code = 0
        finally:
            os._exit(code)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as file:
        said = file.read()
    os.waitpid(pid, 0)
    if not said:
        return KvmFinding(
            hardware=False, why_not="KVM ran a guest of ten instructions for more than twenty seconds"
        )
    return msgspec.json.decode(said, type=KvmFinding)


def _probe() -> KvmFinding:
    if not os.path.exists("/dev/kvm"):
        return KvmFinding(hardware=False, why_not="there is no /dev/kvm")
    if sys.maxsize < 1 << 32 or os.uname().machine != "x86_64":
        return KvmFinding(hardware=False, why_not="the probe is written for x86-64")
    try:
        reason = _run(SHIFT)
        if reason != EXIT_HLT:
            why = f"KVM emulates instructions and does not know BMI2's shlx (exit {reason})"
            return KvmFinding(hardware=False, why_not=why)
        began = time.thread_time()
        reason = _run(COUNT_DOWN)
        loop_s = time.thread_time() - began
        if reason != EXIT_HLT:
            return KvmFinding(hardware=False, why_not=f"a loop of 100,000 steps ended with KVM exit {reason}")
        if loop_s > MAX_LOOP_S:
            why = f"KVM emulates instructions: a loop of 100,000 steps took {loop_s * 1e3:.0f} ms"
            return KvmFinding(hardware=False, why_not=why, loop_ms=loop_s * 1e3)
        return KvmFinding(hardware=True, loop_ms=loop_s * 1e3)
    except OSError as error:
        return KvmFinding(hardware=False, why_not=f"/dev/kvm refuses: {error.strerror}")
    except (struct.error, OverflowError, ValueError) as error:
        return KvmFinding(hardware=False, why_not=f"the probe itself failed: {error}")


def _run(code: bytes) -> int:
    """Run code in long mode with identity paging until the guest exits; returns KVM's exit reason."""
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    vm = vcpu = -1
    try:
        vm = fcntl.ioctl(kvm, SYSTEM["create_vm"], 0)
        ctypes.CDLL(None).ioctl(vm, SET_TSS_ADDR, ctypes.c_ulong(0xFFFBD000))
        memory = mmap.mmap(-1, MEMORY, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        memory[CODE_AT : CODE_AT + len(code)] = code
        pml4, pdpt, pd = TABLES_AT, TABLES_AT + 0x1000, TABLES_AT + 0x2000
        for at, entry in ((pml4, pdpt | 3), (pdpt, pd | 3), (pd, 0x83)):
            memory[at : at + 8] = struct.pack("<Q", entry)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        fcntl.ioctl(vm, SET_USER_MEMORY_REGION, struct.pack("IIQQQ", 0, 0, 0, MEMORY, address))
        vcpu = fcntl.ioctl(vm, CREATE_VCPU, 0)
        cpuid = bytearray(struct.pack("II", 256, 0) + bytes(256 * 40))
        fcntl.ioctl(kvm, SYSTEM["supported_cpuid"], cpuid)
        fcntl.ioctl(vcpu, SET_CPUID2, cpuid)
        state = mmap.mmap(vcpu, fcntl.ioctl(kvm, SYSTEM["vcpu_mmap_size"], 0))
        fcntl.ioctl(vcpu, SET_SREGS, _long_mode(vcpu))
        registers = [0] * 18
        registers[6], registers[16], registers[17] = 0x8000, CODE_AT, 2  # rsp, rip, rflags
        fcntl.ioctl(vcpu, SET_REGS, struct.pack("18Q", *registers))
        fcntl.ioctl(vcpu, RUN, 0)
        return int(struct.unpack_from("I", state, 8)[0])
    finally:
        for fd in (vcpu, vm, kvm):
            if fd >= 0:
                os.close(fd)


def _long_mode(vcpu: int) -> bytes:
    """The special registers of a flat 64-bit guest (struct kvm_sregs)."""
    sregs = bytearray(312)
    fcntl.ioctl(vcpu, GET_SREGS, sregs)

    def segment(kind: int, *, long: int, db: int, selector: int) -> bytes:
        return struct.pack("QIHBBBBBBBBBB", 0, 0xFFFFFFFF, selector, kind, 1, 0, db, 1, long, 1, 0, 0, 0)

    code = segment(11, long=1, db=0, selector=8)
    data = segment(3, long=0, db=1, selector=16)
    sregs[0 : 6 * 24] = code + data * 5
    control = 8 * 24 + 2 * 16
    struct.pack_into(
        "QQQQQQ", sregs, control, 0x80050033, 0, TABLES_AT, 0x620, 0, 0x500
    )  # cr0 cr2 cr3 cr4 cr8 efer
    return bytes(sregs)
