package soak

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// clock is the wall clock of one process of ours, which can be set without touching this host's. A Go program reads the time by the
// kernel's vDSO, a page of code in its own memory. There the function that reads it is replaced by one that adds an offset to
// CLOCK_REALTIME, and to no other clock: as after settimeofday(2), timers and monotonic time do not jump.
type clock struct {
	memory *os.File
	offset int64 // address of the offset, seconds
}

// takeClock replaces the clock of a process. Close lets the file go; the clock stays as it is.
func takeClock(pid int) (*clock, error) {
	begin, end, err := vdso(pid)
	if err != nil {
		return nil, err
	}
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	c := &clock{memory: memory}
	if err := c.patch(begin, end); err != nil {
		memory.Close()
		return nil, fmt.Errorf("clock of process %d: %w", pid, err)
	}
	return c, nil
}

// set makes the wall clock differ from this host's by an offset, in whole seconds.
func (c *clock) set(offset time.Duration) error {
	_, err := c.memory.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(offset/time.Second)), c.offset)
	return err
}

func (c *clock) close() { c.memory.Close() }

func vdso(pid int) (begin, end int64, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(maps)) {
		if !strings.HasSuffix(strings.TrimSpace(line), "[vdso]") {
			continue
		}
		from, to, _ := strings.Cut(strings.Fields(line)[0], "-")
		if begin, err = strconv.ParseInt(from, 16, 64); err == nil {
			end, err = strconv.ParseInt(to, 16, 64)
		}
		return begin, end, err
	}
	return 0, 0, fmt.Errorf("process %d has no vDSO", pid)
}

// The code of the new function, by the System V calling convention: the clock's number comes in EDI, where to write the seconds in
// RSI. The address of the offset is filled in.
var (
	readClock = []byte{
		0xb8, 228, 0, 0, 0, // mov eax, SYS_clock_gettime
		0x0f, 0x05, // syscall
		0x85, 0xff, // test edi, edi: CLOCK_REALTIME is 0
		0x75, 0x0a, // jne done
		0x48, 0x8b, 0x15, 0, 0, 0, 0, // mov rdx, [rip+offset]
		0x48, 0x01, 0x16, // add [rsi], rdx
		0xc3, // done: ret
	}
	operand = 14 // of the offset's distance from the end of its instruction, in readClock
)

func (c *clock) patch(begin, end int64) error {
	image := make([]byte, end-begin)
	if _, err := c.memory.ReadAt(image, begin); err != nil {
		return err
	}
	file, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return err
	}
	symbols, err := file.DynamicSymbols()
	if err != nil {
		return err
	}
	entry := int64(0)
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" {
			entry = int64(s.Value)
		}
	}
	// The padding at the end takes the code.
	place := int64(len(image)) - 64
	if entry == 0 || !bytes.Equal(image[place:], make([]byte, 64)) {
		return fmt.Errorf("its vDSO is not as expected: clock_gettime at %#x, the last 64 bytes are % x", entry, image[place:])
	}
	offset := place + 56
	code := bytes.Clone(readClock)
	binary.LittleEndian.PutUint32(code[operand:], uint32(offset-(place+int64(operand)+4)))
	if _, err := c.memory.WriteAt(code, begin+place); err != nil {
		return err
	}
	c.offset = begin + offset
	jump := binary.LittleEndian.AppendUint32([]byte{0xe9}, uint32(place-(entry+5)))
	_, err = c.memory.WriteAt(jump, begin+entry)
	return err
}
