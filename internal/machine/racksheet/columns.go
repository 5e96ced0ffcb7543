package racksheet

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"unicode"
)

// column is what the cells below a header mean.
type column string

const (
	columnName        column = "name"
	columnSite        column = "site"
	columnRoom        column = "room"
	columnRack        column = "rack"
	columnUnit        column = "unit"
	columnChassis     column = "chassis"
	columnSlot        column = "slot"
	columnSerial      column = "serial"
	columnUUID        column = "uuid"
	columnMAC         column = "mac"
	columnBMCMAC      column = "bmc mac"
	columnBMCAddress  column = "bmc address"
	columnBMCProtocol column = "bmc protocol"
	columnBMCSystem   column = "bmc system"
	columnBMCSecret   column = "bmc secret"
	columnHostname    column = "hostname"
	columnAddress     column = "address"
	columnSubnet      column = "subnet"
	columnGroup       column = "group"
	columnLabels      column = "labels"
	columnProfile     column = "profile"
	columnApproved    column = "approved"
	columnSwitchPorts column = "switch ports"
	columnSwitch      column = "switch"
	columnPort        column = "port"
	columnMemory      column = "memory"
	columnCores       column = "cores"
	columnDisks       column = "disks"
	// columnNotes are read by people only.
	columnNotes column = "notes"
	// columnUnused are columns that are known, and have nothing for a Machine.
	columnUnused column = "unused"
)

// spelling are the ways in which people write a header, as squeeze leaves them.
type spelling struct {
	column column
	words  string
}

// spellings are English, German and Chinese. Words are parted by spaces; each is a whole header.
var spellings = []spelling{
	{columnName, "name names machine machinename server servername node nodename device devicename systemname assetname objectname " +
		"bezeichnung geraet geraetename geraetebezeichnung rechner rechnername maschine maschinenname knoten knotenname servername " +
		"名称 服务器 服务器名称 服务器名 设备名称 设备名 机器名 机器名称 节点 节点名称"},
	{columnHostname, "hostname host fqdnhost hostnamen systemhostname 主机名 主机名称 主机"},
	{columnSite, "site dc datacenter datacentre location standort rechenzentrum rz 数据中心 站点"},
	{columnRoom, "room hall raum serverraum saal 机房 房间"},
	{columnRack, "rack rackname rackid rackno racknumber racknr racknummer cabinet cabinetid schrank schranknr serverschrank 机柜 机架 机柜号 机柜编号 机柜名称"},
	{columnUnit, "unit units u ru he rackunit ruposition uposition upos uno position pos startu bottomu lowestu hoeheneinheit hevon heposition rackposition einbauposition u位 机位 位置 起始u位 u位置"},
	{columnChassis, "chassis chassisname chassisid enclosure bladechassis gehaeuse bladegehaeuse 机箱 刀箱"},
	{columnSlot, "slot slotno slotnr bay blade bladeslot einschub steckplatz 槽位 插槽 槽位号"},
	{columnSerial, "serial serials serialno serialnr serialnumber sn snr servicetag servicetagsn seriennummer seriennr geraeteseriennummer systemserial systemserialnumber 序列号 产品序列号 设备序列号 sn号 sn码"},
	{columnUUID, "uuid systemuuid smbiosuuid"},
	{columnMAC, "mac macs macaddress macaddr macaddresses macadresse macadressen nic nicmac nicmacs pxe pxemac bootmac lanmac lan eth ethmac netzwerkkarte hostmac servermac portmac maceth maceno macens macenp maclan macnic macport " +
		"mac地址 网卡mac 网卡mac地址 网卡 网卡地址 物理地址 业务mac pxemac地址"},
	{columnBMCMAC, "bmcmac bmcmacaddress bmcmacadresse ipmimac ipmimacaddress ilomac idracmac dracmac xccmac immmac mgmtmac managementmac managementmacaddress oobmac remotemac " +
		"bmcmac地址 带外mac 带外mac地址 管理mac 管理口mac 管理口mac地址 ipmimac地址"},
	{columnBMCAddress, "bmc bmcip bmcaddress bmcipaddress bmcadresse bmchost ipmi ipmiip ipmiaddress ipmiadresse ilo iloip ilohost idrac idracip dracip xccip immip mgmtip mgmtipaddress managementip managementaddress managementipaddress " +
		"oobip oob oobaddress remoteip verwaltungsip verwaltungsadresse managementadresse bmcip地址 bmc地址 ipmi地址 ipmiip地址 带外ip 带外地址 带外管理ip 管理ip 管理地址 管理口ip 管理ip地址"},
	{columnBMCProtocol, "bmcprotocol bmctype bmcprotokoll"},
	{columnBMCSystem, "bmcsystem redfishsystem"},
	{columnBMCSecret, "bmcsecret bmccredentials bmcsecretname"},
	{columnAddress, "address ip ips ipaddress ipaddr ipv4 ipv4address hostip serverip nodeip osip primaryip dataip adresse ipadresse ipv4adresse serveradresse ip地址 业务ip 业务ip地址 主机ip 系统ip 服务器ip 地址"},
	{columnSubnet, "subnet subnetname network networkname netz netzwerk netzname subnetz segment 子网 网段 网络"},
	{columnGroup, "group groups groupname machinegroup gruppe gruppenname role rolle 分组 组 角色 机器组"},
	{columnLabels, "labels label tags tag etiketten 标签"},
	{columnProfile, "profile profilename profil installprofile osprofile 配置 配置文件 模板 安装模板"},
	{columnApproved, "approved approve approval freigabe freigegeben genehmigt 批准 已批准"},
	{columnSwitchPorts, "switchports cabling verkabelung"},
	{columnSwitch, "switch switchname tor torswitch leaf leafswitch 交换机 交换机名称 接入交换机"},
	{columnPort, "port switchport portname torport leafport swport 端口 交换机端口 接口"},
	{columnMemory, "memory memorygb memorygib mem ram ramgb ramgib ramingb arbeitsspeicher arbeitsspeichergb hauptspeicher speicher speichergb 内存 内存gb 内存容量"},
	{columnCores, "cores cpucores corecount kerne cpukerne corestotal totalcores prozessorkerne 核数 cpu核数 核心数 总核数"},
	{columnDisks, "disks diskcount drives drivecount numberofdisks festplatten anzahlfestplatten platten datentraeger 硬盘 硬盘数 硬盘数量 磁盘 磁盘数 磁盘数量"},
	{columnNotes, "note notes comment comments remark remarks bemerkung bemerkungen kommentar kommentare notiz notizen anmerkung anmerkungen hinweis hinweise info 备注 说明 注释"},
	{columnUnused, "no nr number numbers lfdnr laufendenummer id index row zeile 序号 编号 height heunits anzahlhe hoehe heanzahl uheight usize sizeu u数 高度"},
}

// heading is a column of one sheet.
type heading struct {
	column
	// label is the key of a label that has a column of its own.
	label string
	// shown is how people call the column.
	shown string
	// word is the header as squeeze leaves it.
	word string
	// bytes is the unit that the header of a memory column names, or "".
	bytes string
}

// squeeze leaves of a header only what tells it from others: lower-case letters, without umlauts and punctuation.
func squeeze(text string) string {
	text = spelledOut.Replace(strings.ToLower(clean(text)))
	return strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) || unicode.IsDigit(r) {
			return r
		}
		return -1
	}, text)
}

// spelledOut are letters that people also write as two.
var spelledOut = strings.NewReplacer("ä", "ae", "ö", "oe", "ü", "ue", "ß", "ss", "#", "nr")

// columnNamed tells what a header means. The column is empty when nobody knows.
func columnNamed(header string) heading {
	header = clean(header)
	lower := strings.ToLower(header)
	for _, prefix := range []string{"label:", "label.", "label ", "tag:"} {
		if key, ok := strings.CutPrefix(lower, prefix); ok && strings.TrimSpace(key) != "" {
			return heading{column: columnLabels, label: strings.TrimSpace(header[len(header)-len(key):])}
		}
	}
	word := squeeze(header)
	// "MAC 1", "eth0 MAC" and "MAC (eth0)" are MACs; "U1" and "Switch 2" lose their digits alike.
	for _, w := range []string{word, strings.Trim(word, "0123456789"), strings.Map(withoutDigits, word), withoutBrackets(header)} {
		if w == "" {
			continue
		}
		if c, ok := columnOf()[w]; ok {
			return heading{column: c, word: word, bytes: unitIn(word)}
		}
	}
	return heading{}
}

// columnOf has the column of every spelling.
var columnOf = sync.OnceValue(func() map[string]column {
	all := map[string]column{}
	for _, s := range spellings {
		for _, word := range strings.Fields(s.words) {
			all[word] = s.column
		}
	}
	return all
})

func withoutDigits(r rune) rune {
	if unicode.IsDigit(r) {
		return -1
	}
	return r
}

// withoutBrackets is a header without what is explained in brackets: "Höhe (HE)", "MAC (eth0)".
func withoutBrackets(header string) string {
	header = strings.NewReplacer("（", "(", "）", ")", "[", "(", "]", ")").Replace(header)
	before, rest, ok := strings.Cut(header, "(")
	if !ok {
		return ""
	}
	_, after, _ := strings.Cut(rest, ")")
	return strings.Map(withoutDigits, squeeze(before+after))
}

func unitIn(word string) string {
	for _, unit := range []string{"tib", "tb", "gib", "gb", "mib", "mb"} {
		if strings.HasSuffix(word, unit) {
			return unit
		}
	}
	return ""
}

// knownColumns are the columns of a line that have a known header, if it is the header line.
func knownColumns(line Line) []int {
	var known []int
	for i, text := range line.header() {
		if columnNamed(text).column != "" {
			known = append(known, i)
		}
	}
	return known
}

// findHeader is the index of the header line: the first in which two cells are known headers, else the first whose only cell is one;
// -1 if there is none.
func findHeader(lines []Line) int {
	for i := range lines {
		words := map[string]bool{} // a title that is merged over all columns is one
		for _, at := range knownColumns(lines[i]) {
			words[squeeze(lines[i].header()[at])] = true
		}
		if len(words) >= 2 {
			return i
		}
	}
	return slices.IndexFunc(lines, func(l Line) bool {
		filled := 0
		for i := range l.Cells {
			if l.cell(i) != "" {
				filled++
			}
		}
		return filled == 1 && len(knownColumns(l)) == 1
	})
}

// headings are the columns of a header line; those without a header are nil values. What is not known is told.
func (g *Grid) headings(line Line) (columns []heading, notes []Problem) {
	for i, text := range line.header() {
		text = clean(text)
		h := columnNamed(text)
		h.shown = fmt.Sprintf("%q", text)
		if g.lettered {
			h.shown = fmt.Sprintf("%s (%q)", letter(i), text)
		}
		columns = append(columns, h)
		if text != "" && h.column == "" {
			message := "is not known, and not read"
			if near := nearest(text); near != "" {
				message += fmt.Sprintf("; if it is the column %q, call it that", near)
			}
			notes = append(notes, Problem{Sheet: g.Sheet, Line: line.Number, Column: h.shown, Message: message})
		}
	}
	return columns, notes
}

// nearest is the column whose name or spelling differs from a header in a letter or two, or "".
func nearest(header string) column {
	word := squeeze(header)
	if len(word) < 4 {
		return ""
	}
	for _, s := range spellings {
		for _, w := range strings.Fields(s.words) {
			if len(w) >= 4 && distance(word, w) <= 1+len(word)/8 {
				return s.column
			}
		}
	}
	return ""
}

// distance is the number of letters to change, add or remove (Levenshtein).
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	if len(x) > 32 || len(y) > 32 {
		return 32
	}
	row := make([]int, len(y)+1)
	for j := range row {
		row[j] = j
	}
	for i := range x {
		diagonal := row[0]
		row[0] = i + 1
		for j := range y {
			cost := diagonal
			if x[i] != y[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(y)]
}
