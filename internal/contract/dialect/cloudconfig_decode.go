package dialect

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"coldrack.dev/internal/contract/manifest/yamlerr"
	"coldrack.dev/internal/contract/nodeconfig"
	"coldrack.dev/internal/contract/validate"
)

// header is the first line of a #cloud-config.
const header = "#cloud-config"

// Variables are the values of what a #cloud-config says as $private_ipv4 and the like, for one machine. CoreOS asked its cloud's metadata
// for them; on bare metal they were empty.
type Variables struct {
	PrivateIPv4, PublicIPv4, PrivateIPv6, PublicIPv6 netip.Addr
}

func (v Variables) values() map[string]netip.Addr {
	return map[string]netip.Addr{"$private_ipv4": v.PrivateIPv4, "$public_ipv4": v.PublicIPv4, "$private_ipv6": v.PrivateIPv6, "$public_ipv6": v.PublicIPv6}
}

// expand replaces the variables of a text, unless a backslash stands before one; unknown names those that have no value.
func (v Variables) expand(text string) (expanded string, unknown []string) {
	for name, value := range v.values() {
		var b strings.Builder
		rest := text
		for {
			before, after, found := strings.Cut(rest, name)
			if !found {
				break
			}
			switch {
			case strings.HasSuffix(before, `\`):
				b.WriteString(before[:len(before)-1] + name)
			case value.IsValid():
				b.WriteString(before + value.String())
			default:
				b.WriteString(before + name)
				unknown = append(unknown, name)
			}
			rest = after
		}
		text = b.String() + rest
	}
	slices.Sort(unknown)
	return text, slices.Compact(unknown)
}

// replaced says what of Coldrack does the work of a section or unit of CoreOS.
var replaced = map[string]string{
	"etcd":          "Coldrack runs the etcd of each Cluster itself; other etcd clusters meet by `coldrack discovery new` (docs/coreos.md)",
	"etcd2":         "Coldrack runs the etcd of each Cluster itself; other etcd clusters meet by `coldrack discovery new` (docs/coreos.md)",
	"fleet":         "fleet is no more; run its units by spec.units of Profiles, or as Kubernetes objects of a Cluster",
	"flannel":       "Coldrack sets up the pod network of each Cluster itself (spec.network)",
	"flanneld":      "Coldrack sets up the pod network of each Cluster itself (spec.network)",
	"docker":        "Coldrack runs containerd on the nodes of a Cluster; on others, add a container engine to the image",
	"locksmith":     "Coldrack reboots nodes one after another, within spec.maintenanceWindows of their Cluster",
	"locksmithd":    "Coldrack reboots nodes one after another, within spec.maintenanceWindows of their Cluster",
	"oem":           "it said which cloud an image was for; nothing reads it",
	"update":        "another Image in the Profile updates installed nodes; update_engine of Flatcar is served by `coldrack serve --update-port` (docs/coreos.md)",
	"update-engine": "another Image in the Profile updates installed nodes; update_engine of Flatcar is served by `coldrack serve --update-port` (docs/coreos.md)",
}

// ofCloudInit are top-level keys of cloud-init, whose files begin with the same line.
var ofCloudInit = []string{"apt", "bootcmd", "chpasswd", "disk_setup", "fqdn", "fs_setup", "groups", "growpart", "locale", "mounts", "network", "ntp", "package_update",
	"package_upgrade", "packages", "power_state", "runcmd", "snap", "ssh_pwauth", "swap", "system_info", "timezone"}

func parseCloudConfig(text []byte, v Variables) Result {
	d := cloudDecoder{variables: v}
	first, _, _ := bytes.Cut(text, []byte("\n"))
	if string(bytes.TrimRight(first, " \t\r")) != header {
		d.problem(1, "", "the first line must be %s, and is %q", header, shorten(string(first)))
		return d.Result
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var document, second yaml.Node
	err := decoder.Decode(&document)
	switch {
	case errors.Is(err, io.EOF):
		return d.Result // nothing but comments
	case err != nil:
		d.problem(0, "", "%s", yamlerr.Text(err))
		return d.Result
	}
	if err := decoder.Decode(&second); !errors.Is(err, io.EOF) {
		d.problem(second.Line, "", "a second document, or what is none, which CoreOS would not read")
		return d.Result
	}
	d.top(document.Content[0])
	slices.SortStableFunc(d.Problems, func(a, b Finding) int { return a.Line - b.Line })
	return d.Result
}

type cloudDecoder struct {
	builder
	variables Variables
}

// fields calls what a mapping's keys stand for, with each key's value and the place of it. Keys are compared as CoreOS did: - is _.
type fields map[string]func(at place, value *yaml.Node)

// place is where a value is written.
type place struct {
	line  int
	field string
}

func (p place) key(name string, n *yaml.Node) place {
	if p.field != "" {
		name = p.field + "." + name
	}
	return place{n.Line, name}
}

func (p place) item(i int, n *yaml.Node) place {
	return place{n.Line, fmt.Sprintf("%s[%d]", p.field, i)}
}

// maxNodes bounds aliases, of which a few lines can make a tree without end.
const maxNodes = 100_000

// resolved follows an alias.
func resolved(n *yaml.Node) *yaml.Node {
	for range 8 {
		if n.Kind != yaml.AliasNode {
			break
		}
		n = n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func (d *cloudDecoder) mapping(at place, n *yaml.Node, known fields, hint func(key string) string) {
	n = resolved(n)
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.problem(n.Line, at.field, "must be a mapping of keys to values, and is %s", kindOf(n))
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name := strings.ReplaceAll(key.Value, "-", "_")
		here := at.key(shorten(key.Value), key)
		if first := seen[name]; first > 0 {
			d.problem(key.Line, here.field, "is given twice, first on line %d", first)
			continue
		}
		seen[name] = key.Line
		if key.Kind != yaml.ScalarNode {
			d.problem(key.Line, at.field, "a key must be a word")
			continue
		}
		read := known[name]
		if read == nil {
			text := "unknown key; CoreOS ignores it"
			if similar := nearest(name, slices.Collect(maps.Keys(known))); similar != "" {
				text += fmt.Sprintf("; did you mean %s?", similar)
			} else if hint != nil && hint(name) != "" {
				text = hint(name)
			}
			d.problem(key.Line, here.field, "%s", text)
			continue
		}
		if !isNull(resolved(value)) {
			read(here, value)
		}
	}
}

// nearest is a known key that differs in a letter or two.
func nearest(name string, known []string) string {
	slices.Sort(known)
	for _, k := range known {
		if k != name && distance(k, name) <= max(1, len(k)/5) {
			return k
		}
	}
	return ""
}

// distance counts the letters to change, add or leave out between two words (Levenshtein); words that differ much in length are far apart.
func distance(a, b string) int {
	if len(b) > len(a)+3 || len(a) > len(b)+3 {
		return len(a) + len(b)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		previous := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			previous, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, previous+cost)
		}
	}
	return row[len(b)]
}

func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		return fmt.Sprintf("%q", shorten(n.Value))
	}
	return "something else"
}

// each calls read for the items of a list.
func (d *cloudDecoder) each(at place, n *yaml.Node, read func(at place, item *yaml.Node)) {
	n = resolved(n)
	if n.Kind != yaml.SequenceNode {
		d.problem(n.Line, at.field, "must be a list, and is %s", kindOf(n))
		return
	}
	for i, item := range n.Content {
		read(at.item(i, item), item)
	}
}

// text reads a word; numbers and the like are words, too.
func (d *cloudDecoder) text(to *string) func(place, *yaml.Node) {
	return func(at place, n *yaml.Node) {
		n = resolved(n)
		if n.Kind != yaml.ScalarNode {
			d.problem(n.Line, at.field, "must be a text, and is %s", kindOf(n))
			return
		}
		*to = n.Value
		if n.Tag == "!!binary" {
			b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(n.Value), ""))
			if err != nil {
				d.problem(n.Line, at.field, "is no base64: %v", err)
			}
			*to = string(b)
		}
	}
}

func (d *cloudDecoder) texts(to *[]string) func(place, *yaml.Node) {
	return func(at place, n *yaml.Node) {
		d.each(at, n, func(at place, item *yaml.Node) {
			var s string
			d.text(&s)(at, item)
			*to = append(*to, s)
		})
	}
}

func (d *cloudDecoder) boolean(to *bool) func(place, *yaml.Node) {
	return func(at place, n *yaml.Node) {
		// yes, no, on and off are booleans for CoreOS: YAML 1.1.
		switch n = resolved(n); strings.ToLower(n.Value) {
		case "true", "yes", "on", "y":
			*to = true
		case "false", "no", "off", "n":
			*to = false
		default:
			d.problem(n.Line, at.field, "must be true or false, and is %s", kindOf(n))
		}
	}
}

// expanded replaces variables; one without a value makes the item that it is part of useless.
func (d *cloudDecoder) expanded(at place, what string, texts ...*string) bool {
	for _, t := range texts {
		text, unknown := d.variables.expand(*t)
		if len(unknown) > 0 {
			flag := "--" + strings.ReplaceAll(strings.TrimPrefix(unknown[0], "$"), "_", "-")
			d.lost(at.line, at.field, "%s needs %s, which each machine has of its own; give it with %s ADDRESS for one machine", what, strings.Join(unknown, " and "), flag)
			return false
		}
		*t = text
	}
	return true
}

func (d *cloudDecoder) top(n *yaml.Node) {
	if countNodes(n, maxNodes) <= 0 {
		d.problem(n.Line, "", "more than %d values, with those that aliases repeat", maxNodes)
		return
	}
	var keys []string
	var keysAt place
	d.mapping(place{}, n, fields{
		"hostname": func(at place, n *yaml.Node) {
			var name string
			d.text(&name)(at, n)
			if !d.expanded(at, "the host name", &name) {
				return
			}
			if err := validate.Hostname(name); err != nil {
				d.problem(n.Line, at.field, "%q %v", shorten(name), err)
				return
			}
			d.Node.Config.Hostname = name
		},
		"ssh_authorized_keys": func(at place, n *yaml.Node) { keysAt = at; d.keys(&keys)(at, n) },
		"users":               func(at place, n *yaml.Node) { d.each(at, n, d.cloudUser) },
		"write_files":         func(at place, n *yaml.Node) { d.each(at, n, d.writeFile) },
		"manage_etc_hosts": func(at place, n *yaml.Node) {
			var how string
			if d.text(&how)(at, n); how != "localhost" {
				d.problem(n.Line, at.field, "must be localhost, and is %q", shorten(how))
			}
			// Coldrack always writes /etc/hosts.
		},
		"coreos": d.coreos,
	}, func(key string) string {
		if slices.Contains(ofCloudInit, key) {
			return "is a key of cloud-init; this is read as the #cloud-config of CoreOS, which does not know it"
		}
		return ""
	})
	if len(keys) > 0 {
		// The login of CoreOS, which becomes root without a password.
		d.user(keysAt.line, keysAt.field, nodeconfig.User{Name: existingLogin, SSHKeys: keys, Sudo: true})
	}
}

// countNodes counts down from left for each value, aliases followed; cycles end it, too.
func countNodes(n *yaml.Node, left int) int {
	n = resolved(n)
	left--
	for _, c := range n.Content {
		if left <= 0 {
			return 0
		}
		left = countNodes(c, left)
	}
	return left
}

func (d *cloudDecoder) keys(to *[]string) func(place, *yaml.Node) {
	return func(at place, n *yaml.Node) {
		d.each(at, n, func(at place, item *yaml.Node) {
			var key string
			d.text(&key)(at, item)
			if key, ok := d.key(item.Line, at.field, key); ok {
				*to = append(*to, key)
			}
		})
	}
}

func (d *cloudDecoder) cloudUser(at place, n *yaml.Node) {
	var u nodeconfig.User
	var groups []string
	var groupsAt place
	notOurs := func(why string) func(place, *yaml.Node) {
		return func(at place, _ *yaml.Node) { d.lost(at.line, at.field, "%s", why) }
	}
	const fetched = "keys from another server; write them into ssh_authorized_keys"
	d.mapping(at, n, fields{
		"name":                           d.text(&u.Name),
		"passwd":                         d.text(&u.PasswordHash),
		"shell":                          d.text(&u.Shell),
		"ssh_authorized_keys":            d.keys(&u.SSHKeys),
		"groups":                         func(at place, n *yaml.Node) { groupsAt = at; d.texts(&groups)(at, n) },
		"gecos":                          notOurs(fixedLogin),
		"homedir":                        notOurs(fixedLogin),
		"no_create_home":                 notOurs(fixedLogin),
		"primary_group":                  notOurs(fixedLogin),
		"no_user_group":                  notOurs(fixedLogin),
		"system":                         notOurs(fixedLogin),
		"no_log_init":                    notOurs(fixedLogin),
		"coreos_ssh_import_github":       notOurs(fetched),
		"coreos_ssh_import_github_users": notOurs(fetched),
		"coreos_ssh_import_url":          notOurs(fetched),
	}, func(key string) string {
		if slices.Contains([]string{"sudo", "lock_passwd", "uid", "ssh_import_id", "plain_text_passwd", "hashed_passwd"}, key) {
			return "is a key of cloud-init; CoreOS does not know it. Who is in the group sudo may become root"
		}
		return ""
	})
	if resolved(n).Kind != yaml.MappingNode {
		return
	}
	if u.Name == "" {
		d.problem(at.line, at.field, "a login needs a name")
		return
	}
	u.Sudo = d.groups(groupsAt.line, groupsAt.field, u.Name, groups) || u.Name == existingLogin
	d.user(at.line, at.field, u)
}

func (d *cloudDecoder) writeFile(at place, n *yaml.Node) {
	var name, content, encoding, owner, permissions string
	var contentAt, permissionsAt place
	d.mapping(at, n, fields{
		"path":        d.text(&name),
		"content":     func(at place, n *yaml.Node) { contentAt = at; d.text(&content)(at, n) },
		"encoding":    d.text(&encoding),
		"owner":       d.text(&owner),
		"permissions": func(at place, n *yaml.Node) { permissionsAt = at; d.text(&permissions)(at, n) },
	}, func(key string) string {
		if slices.Contains([]string{"append", "defer", "source"}, key) {
			return "is a key of cloud-init; CoreOS does not know it"
		}
		return ""
	})
	if resolved(n).Kind != yaml.MappingNode {
		return
	}
	if name == "" {
		d.problem(at.line, at.field, "a file needs a path")
		return
	}
	if !d.expanded(at, "the file "+shorten(name), &name, &content) {
		return
	}
	f := nodeconfig.File{Path: name}
	var err error
	if f.Content, err = decodeContent(encoding, content); err != nil {
		d.problem(contentAt.line, contentAt.field, "%v", err)
		return
	}
	if permissions != "" {
		mode, err := strconv.ParseUint(permissions, 8, 32)
		if err != nil || len(permissions) < 3 || len(permissions) > 5 || validate.FileMode(uint32(mode)) != nil {
			d.problem(permissionsAt.line, permissionsAt.field, "%q is no file mode; want octal digits such as \"0644\"", shorten(permissions))
			return
		}
		f.Mode = uint32(mode)
	}
	if owner != "" {
		// As chown(1) takes it. Without a group, the group stays root's.
		user, group, _ := strings.Cut(owner, ":")
		named := map[string]string{"": "root", "0": "root"}
		if r, ok := named[user]; ok {
			user = r
		}
		if r, ok := named[group]; ok {
			group = r
		}
		if f.Owner = user + ":" + group; f.Owner == "root:root" {
			f.Owner = ""
		}
	}
	d.file(at.line, at.field, f)
}

func decodeContent(encoding, content string) ([]byte, error) {
	decode := func() ([]byte, error) {
		b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(content), ""))
		if err != nil {
			return nil, fmt.Errorf("is no base64: %w", err)
		}
		return b, nil
	}
	switch encoding {
	case "", "text/plain":
		return []byte(content), nil
	case "b64", "base64":
		return decode()
	case "gz", "gzip":
		return gunzip([]byte(content))
	case "gz+b64", "gzip+b64", "gz+base64", "gzip+base64":
		b, err := decode()
		if err != nil {
			return nil, err
		}
		return gunzip(b)
	}
	return nil, fmt.Errorf("the encoding %q is not known; want b64, gz or gz+b64", shorten(encoding))
}

func (d *cloudDecoder) coreos(at place, n *yaml.Node) {
	gone := func(at place, n *yaml.Node) {
		name := at.field[strings.LastIndexByte(at.field, '.')+1:]
		d.sectionValues(at, n)
		d.lost(at.line, at.field, "%s", replaced[strings.ReplaceAll(name, "-", "_")])
	}
	d.mapping(at, n, fields{
		"etcd": gone, "etcd2": gone, "fleet": gone, "flannel": gone, "locksmith": gone, "oem": gone,
		"update": d.update,
		"units":  func(at place, n *yaml.Node) { d.each(at, n, d.cloudUnit) },
	}, nil)
}

// sectionValues checks that a section that is not carried over is one of settings; which there were is of no more use.
func (d *cloudDecoder) sectionValues(at place, n *yaml.Node) {
	n = resolved(n)
	if n.Kind != yaml.MappingNode {
		d.problem(n.Line, at.field, "must be a mapping of keys to values, and is %s", kindOf(n))
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if value := resolved(n.Content[i+1]); value.Kind != yaml.ScalarNode {
			d.problem(value.Line, at.field+"."+shorten(n.Content[i].Value), "must be a text, a number or a boolean, and is %s", kindOf(value))
		}
	}
}

func (d *cloudDecoder) update(at place, n *yaml.Node) {
	var u Update
	var strategyAt place
	d.mapping(at, n, fields{
		"group":           d.text(&u.Group),
		"server":          d.text(&u.Server),
		"reboot_strategy": func(at place, n *yaml.Node) { strategyAt = at; d.text(&u.RebootStrategy)(at, n) },
	}, nil)
	if u.RebootStrategy == "false" {
		u.RebootStrategy = "off" // what YAML 1.1 makes of off
	}
	if known := []string{"", "best-effort", "etcd-lock", "reboot", "off"}; !slices.Contains(known, u.RebootStrategy) {
		d.problem(strategyAt.line, strategyAt.field, "%q is not known; want one of %s", shorten(u.RebootStrategy), strings.Join(known[1:], ", "))
		return
	}
	for _, value := range []string{u.Group, u.Server} {
		if strings.ContainsAny(value, "\n\r\x00") {
			d.problem(at.line, at.field, "a value has a line break")
			return
		}
	}
	d.Node.Update = u
}

// startsUnit are the commands that leave a unit running.
var startsUnit = []string{"start", "restart", "try-restart", "reload-or-restart", "reload-or-try-restart", "reload"}

func (d *cloudDecoder) cloudUnit(at place, n *yaml.Node) {
	type dropIn struct {
		at            place
		name, content string
	}
	var u nodeconfig.Unit
	var command string
	var runtime bool
	var dropIns []dropIn
	var runtimeAt, commandAt place
	d.mapping(at, n, fields{
		"name":    d.text(&u.Name),
		"mask":    d.boolean(&u.Masked),
		"enable":  d.boolean(&u.Enabled),
		"runtime": func(at place, n *yaml.Node) { runtimeAt = at; d.boolean(&runtime)(at, n) },
		"content": d.text(&u.Content),
		"command": func(at place, n *yaml.Node) { commandAt = at; d.text(&command)(at, n) },
		"drop_ins": func(at place, n *yaml.Node) {
			d.each(at, n, func(at place, n *yaml.Node) {
				drop := dropIn{at: at}
				d.mapping(at, n, fields{"name": d.text(&drop.name), "content": d.text(&drop.content)}, nil)
				dropIns = append(dropIns, drop)
			})
		},
	}, nil)
	if resolved(n).Kind != yaml.MappingNode {
		return
	}
	if u.Name == "" {
		d.problem(at.line, at.field, "a unit needs a name, such as etcd2.service")
		return
	}
	if command != "" && command != "stop" && !slices.Contains(startsUnit, command) {
		d.problem(commandAt.line, commandAt.field, "%q is not known; want stop, %s", shorten(command), strings.Join(startsUnit, ", "))
		return
	}
	texts := []*string{&u.Content}
	for i := range dropIns {
		texts = append(texts, &dropIns[i].content)
	}
	if !d.expanded(at, "the unit "+shorten(u.Name), texts...) {
		return
	}
	if networkFile(u.Name) {
		if u.Content == "" {
			d.lost(at.line, at.field, "%s has no content, and files of the image stay as they are", shorten(u.Name))
			return
		}
		d.file(at.line, at.field, nodeconfig.File{Path: "/etc/systemd/network/" + u.Name, Content: []byte(u.Content)})
		return
	}
	base, _, _ := strings.Cut(strings.TrimSuffix(u.Name, path.Ext(u.Name)), "@")
	if why := replaced[base]; why != "" && u.Content == "" && !u.Masked {
		d.lost(at.line, at.field, "%s is part of CoreOS' images: %s", shorten(u.Name), why)
		return
	}
	if runtime {
		d.lost(runtimeAt.line, runtimeAt.field, "%s was for one boot, and stays now", shorten(u.Name))
	}
	d.command(commandAt, command, &u)
	for _, drop := range dropIns {
		d.dropIn(drop.at.line, drop.at.field, u.Name, drop.name, drop.content)
	}
	d.unit(at.line, at.field, u)
}

// command carries over what was done with a unit at every boot.
func (d *cloudDecoder) command(at place, command string, u *nodeconfig.Unit) {
	switch {
	case command == "" || u.Masked:
	case command == "stop":
		d.lost(at.line, at.field, "%s is not stopped at each boot; mask it, if nothing is to start it", shorten(u.Name))
	case u.Content == "":
		u.Enabled = true
	default:
		if links, also := nodeconfig.Enable(u.Name, "/etc/systemd/system/"+u.Name, []byte(u.Content)); len(links)+len(also) == 0 {
			d.lost(at.line, at.field, "%s was started at each boot by the #cloud-config; it has no [Install] section, so nothing starts it now: add WantedBy=multi-user.target",
				shorten(u.Name))
			return
		}
		u.Enabled = true
	}
}
