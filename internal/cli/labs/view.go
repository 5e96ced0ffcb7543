package labs

import (
	"fmt"
	"io"
	"strings"
	"time"

	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/lab"
)

// View is what -o json shows of a lab; scripts rely on it.
type View struct {
	Name          string        `json:"name"`
	Namespace     string        `json:"namespace"`
	Subnet        string        `json:"subnet"`
	ServerAddress string        `json:"serverAddress"`
	Accelerator   string        `json:"accelerator,omitempty"`
	WhyNotKVM     string        `json:"whyNotKVM,omitempty"`
	Machines      []MachineView `json:"machines"`
}

// MachineView is what -o json shows of a machine.
type MachineView struct {
	lab.Spec
	Power      lab.State `json:"power"`
	NetworkCut bool      `json:"networkCut"`
	PID        int       `json:"pid,omitempty"`
	MemoryUsed int64     `json:"memoryUsedBytes,omitempty"`
	MemoryPeak int64     `json:"memoryPeakBytes,omitempty"`
	CPUSeconds float64   `json:"cpuSeconds,omitempty"`
	OnSeconds  float64   `json:"onSeconds,omitempty"`
	ConsoleLog string    `json:"consoleLog"`
	DiskFiles  []string  `json:"diskFiles"`
	LastLine   string    `json:"lastLine,omitempty"`
}

// ViewOf looks at a lab and its machines as they are now.
func ViewOf(l *lab.Lab) View {
	accelerator, reason := l.Accelerator()
	view := View{Name: l.Name(), Namespace: l.Namespace(), Subnet: l.Subnet().String(), ServerAddress: l.ServerAddress().String(),
		Accelerator: string(accelerator), Machines: []MachineView{}}
	if accelerator == lab.TCG {
		view.WhyNotKVM = reason
	}
	for _, m := range l.Machines() {
		v := MachineView{Spec: m.Spec(), Power: lab.Off, NetworkCut: m.NetworkCut(), ConsoleLog: m.ConsoleLog(), LastLine: m.LastLine(), DiskFiles: []string{}}
		for i := range v.Disks {
			v.DiskFiles = append(v.DiskFiles, m.DiskPath(i))
		}
		// A machine that goes off meanwhile is shown as off.
		if use, err := m.Usage(); err == nil {
			v.Power, v.PID = lab.On, use.PID
			v.MemoryUsed, v.MemoryPeak = int64(use.Memory), int64(use.Peak)
			v.CPUSeconds, v.OnSeconds = use.CPU.Seconds(), use.On.Seconds()
		}
		view.Machines = append(view.Machines, v)
	}
	return view
}

// Print writes the table for people; wide has more columns.
func (v View) Print(out io.Writer, wide bool) error {
	if _, err := fmt.Fprintf(out, "lab %s: network namespace %s, %s, server address %s", v.Name, v.Namespace, v.Subnet, v.ServerAddress); err != nil {
		return err
	}
	if len(v.Machines) == 0 {
		_, err := fmt.Fprintln(out, ", no machines")
		return err
	}
	how := "by KVM"
	if v.WhyNotKVM != "" {
		how = "by emulation"
	}
	if _, err := fmt.Fprintf(out, ", machines run %s\n\n", how); err != nil {
		return err
	}
	table := cli.Table{Header: []string{"NAME", "POWER", "FOR", "FIRMWARE", "CPUS", "MEMORY", "USED", "PEAK", "CPU TIME", "NETWORK", "MAC"}}
	if wide {
		table.Header = append(table.Header, "SERIAL", "UUID", "DISKS", "CONSOLE")
	}
	for _, m := range v.Machines {
		table.Add(m.row(wide)...)
	}
	return table.Print(out, true)
}

func (m *MachineView) row(wide bool) []string {
	network := "plugged"
	if m.NetworkCut {
		network = "cut"
	}
	use := []string{"", "", "", ""}
	if m.Power == lab.On {
		use = []string{seconds(m.OnSeconds), mebibytes(m.MemoryUsed), mebibytes(m.MemoryPeak), seconds(m.CPUSeconds)}
	}
	row := []string{m.Name, string(m.Power), use[0], string(m.Firmware), fmt.Sprint(m.CPUs), m.Memory.String(), use[1], use[2], use[3], network, m.MACs[0]}
	if !wide {
		return row
	}
	var sizes []string
	for _, disk := range m.Disks {
		sizes = append(sizes, disk.Size.String())
	}
	return append(row, m.Serial, m.UUID, strings.Join(sizes, "+"), m.LastLine)
}

func seconds(s float64) string {
	return (time.Duration(s * float64(time.Second))).Round(time.Second).String()
}

func mebibytes(bytes int64) string { return fmt.Sprintf("%dMiB", bytes>>20) }
