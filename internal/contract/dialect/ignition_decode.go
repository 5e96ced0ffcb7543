package dialect

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	v3 "github.com/coreos/ignition/v2/config/v3_5"
	"github.com/coreos/ignition/v2/config/v3_5/types"
	vjson "github.com/coreos/vcontext/json"
	vpath "github.com/coreos/vcontext/path"
	"github.com/coreos/vcontext/report"
	"github.com/coreos/vcontext/tree"
	"github.com/vincent-petithory/dataurl"

	"coldrack.dev/internal/contract/nodeconfig"
	"coldrack.dev/internal/contract/validate"
)

func contextOf(elements ...any) vpath.ContextPath { return vpath.New("json", elements...) }

// fieldOf writes a path of the library as people write it: storage.files[0].path.
func fieldOf(p vpath.ContextPath) string {
	var b strings.Builder
	for _, e := range p.Path {
		if i, ok := e.(int); ok {
			fmt.Fprintf(&b, "[%d]", i)
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		fmt.Fprint(&b, e)
	}
	return shorten(b.String())
}

type ignitionDecoder struct {
	builder
	tree tree.Node
}

// at is the line and the name of a field.
func (d *ignitionDecoder) at(elements ...any) (line int, field string) {
	p := contextOf(elements...)
	field = fieldOf(p)
	for ; d.tree != nil; p = p.Pop() {
		if n, err := d.tree.Get(p); err == nil {
			l, _ := n.Start()
			return int(l), field
		}
		if p.Len() == 0 {
			break
		}
	}
	return 0, field
}

func (d *ignitionDecoder) lostAt(elements []any, format string, args ...any) {
	line, field := d.at(elements...)
	d.lost(line, field, format, args...)
}

func list(elements ...any) []any { return elements }

func parseIgnition(text []byte) Result {
	var d ignitionDecoder
	d.tree, _ = vjson.UnmarshalToContext(text) // what is no JSON is reported below
	config, found, err := v3.ParseCompatibleVersion(text)
	if d.tree == nil {
		found.Entries = nil
	}
	d.report(found)
	if d.tree == nil && len(d.Problems) == 0 {
		// Both libraries stop at the same place, and neither tells it here.
		var syntax *json.SyntaxError
		if errors.As(json.Unmarshal(text, new(any)), &syntax) {
			d.problem(1+bytes.Count(text[:min(int(syntax.Offset), len(text))], []byte("\n")), "", "is not JSON: %v", syntax)
		}
	}
	if err != nil && len(d.Problems) == 0 {
		line, field := d.at("ignition", "version")
		d.problem(line, field, "%v", versionError(text, err))
	}
	if len(d.Problems) > 0 {
		return d.Result
	}
	d.Version = versionOf(text)
	d.head(config)
	d.passwd(config.Passwd)
	d.storage(config.Storage)
	d.systemd(config.Systemd.Units)
	return d.Result
}

func versionOf(text []byte) string {
	var head struct {
		Ignition struct {
			Version string `json:"version"`
		} `json:"ignition"`
	}
	_ = json.Unmarshal(text, &head) // no version is an answer, too
	return head.Ignition.Version
}

// versionError says what to do about a version that cannot be read.
func versionError(text []byte, err error) error {
	version := versionOf(text)
	switch {
	case len(bytes.TrimSpace(text)) == 0:
		return errors.New("the file is empty")
	case version == "":
		return fmt.Errorf("is missing, or no text; want %q or another from 3.0.0 to %s (%w)", ignitionVersion, types.MaxVersion, err)
	case strings.HasPrefix(version, "1") || strings.HasPrefix(version, "2"):
		return fmt.Errorf("%q is of CoreOS Container Linux; convert the file to version 3 first, with ign-converter, or write it anew", shorten(version))
	}
	return fmt.Errorf("%q cannot be read; want 3.0.0 to %s (%w)", shorten(version), types.MaxVersion, err)
}

// report takes over what the library found. A key that nothing reads is a mistake here: what it was to do would not happen.
func (d *ignitionDecoder) report(found report.Report) {
	for _, entry := range found.Entries {
		line, _ := entry.Marker.Start()
		f := Finding{int(line), fieldOf(entry.Context), entry.Message}
		switch {
		case strings.HasPrefix(entry.Message, "unused key"):
			f.Message = "unknown key; Ignition ignores it"
			d.Problems = append(d.Problems, f)
		case entry.Kind.IsFatal():
			d.Problems = append(d.Problems, f)
		default:
			d.Warnings = append(d.Warnings, f)
		}
	}
	byLine := func(a, b Finding) int { return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Field, b.Field)) }
	slices.SortStableFunc(d.Problems, byLine)
	slices.SortStableFunc(d.Warnings, byLine)
}

func (d *ignitionDecoder) head(c types.Config) {
	ignition := c.Ignition
	for i, r := range ignition.Config.Merge {
		d.lostAt(list("ignition", "config", "merge", i), "another config from %s; convert that one, too", source(r))
	}
	if ignition.Config.Replace.Source != nil {
		d.lostAt(list("ignition", "config", "replace"), "the config from %s, which takes the place of this one; convert that one instead", source(ignition.Config.Replace))
	}
	if p := ignition.Proxy; p.HTTPProxy != nil || p.HTTPSProxy != nil || len(p.NoProxy) > 0 {
		d.lostAt(list("ignition", "proxy"), "a proxy for downloads of the first boot; an install of Coldrack makes none")
	}
	if len(ignition.Security.TLS.CertificateAuthorities) > 0 {
		d.lostAt(list("ignition", "security", "tls", "certificateAuthorities"), "authorities for downloads of the first boot; an install of Coldrack makes none")
	}
	if ignition.Timeouts != (types.Timeouts{}) {
		d.lostAt(list("ignition", "timeouts"), "time-outs for downloads of the first boot; an install of Coldrack makes none")
	}
	for i, a := range c.KernelArguments.ShouldExist {
		if err := validate.KernelArg(string(a)); err != nil {
			d.lostAt(list("kernelArguments", "shouldExist", i), "%q %v", shorten(string(a)), err)
			continue
		}
		d.Node.KernelArgs = append(d.Node.KernelArgs, string(a))
	}
	for i, a := range c.KernelArguments.ShouldNotExist {
		d.lostAt(list("kernelArguments", "shouldNotExist", i), "the kernel argument %q is not taken away; kernelArgs of the Image has those of an image", shorten(string(a)))
	}
}

func source(r types.Resource) string {
	if r.Source == nil {
		return "nowhere"
	}
	return shorten(*r.Source)
}

func (d *ignitionDecoder) passwd(p types.Passwd) {
	own := map[string]bool{}
	for _, u := range p.Users {
		own[u.Name] = true
	}
	for i, g := range p.Groups {
		if !own[g.Name] || g.Gid != nil || g.System != nil || g.ShouldExist != nil || g.PasswordHash != nil {
			d.lostAt(list("passwd", "groups", i), "the group %q; a node's logins have a group of their own", shorten(g.Name))
		}
	}
	for i, u := range p.Users {
		line, field := d.at("passwd", "users", i)
		if u.ShouldExist != nil && !*u.ShouldExist {
			d.lost(line, field, "the login %q is not removed; leave it out of the image", shorten(u.Name))
			continue
		}
		for _, f := range []struct {
			name string
			set  bool
		}{{"gecos", u.Gecos != nil}, {"homeDir", u.HomeDir != nil}, {"noCreateHome", u.NoCreateHome != nil}, {"noLogInit", u.NoLogInit != nil},
			{"noUserGroup", u.NoUserGroup != nil}, {"primaryGroup", u.PrimaryGroup != nil && *u.PrimaryGroup != u.Name}, {"system", u.System != nil}, {"uid", u.UID != nil}} {
			if f.set {
				d.lostAt(list("passwd", "users", i, f.name), "%s", fixedLogin)
			}
		}
		login := nodeconfig.User{Name: u.Name}
		if u.PasswordHash != nil {
			login.PasswordHash = *u.PasswordHash
		}
		if u.Shell != nil && *u.Shell != nodeconfig.DefaultShell {
			login.Shell = *u.Shell
		}
		for j, key := range u.SSHAuthorizedKeys {
			line, field := d.at("passwd", "users", i, "sshAuthorizedKeys", j)
			if key, ok := d.key(line, field, string(key)); ok {
				login.SSHKeys = append(login.SSHKeys, key)
			}
		}
		var groups []string
		for _, g := range u.Groups {
			groups = append(groups, string(g))
		}
		gline, gfield := d.at("passwd", "users", i, "groups")
		login.Sudo = d.groups(gline, gfield, u.Name, groups)
		d.user(line, field, login)
	}
}

func (d *ignitionDecoder) storage(s types.Storage) {
	for i, disk := range s.Disks {
		d.lostAt(list("storage", "disks", i), "partitions of %s; Coldrack lays out the disk that rootDisk of the Profile selects", shorten(disk.Device))
	}
	for i, r := range s.Raid {
		d.lostAt(list("storage", "raid", i), "the RAID %q; Coldrack makes none", shorten(r.Name))
	}
	for i, l := range s.Luks {
		d.lostAt(list("storage", "luks", i), "the encrypted volume %q; Coldrack makes none", shorten(l.Name))
	}
	for i, f := range s.Filesystems {
		d.lostAt(list("storage", "filesystems", i), "the file system on %s; Coldrack makes those of its own layout only", shorten(f.Device))
	}
	for i, l := range s.Links {
		d.link(i, l)
	}
	for i, dir := range s.Directories {
		d.lostAt(list("storage", "directories", i), "the folder %s; folders of files are made with them, others by a unit of systemd-tmpfiles (/etc/tmpfiles.d)", shorten(dir.Path))
	}
	for i, f := range s.Files {
		d.storageFile(i, f)
	}
}

const zoneInfo = "/usr/share/zoneinfo/"

func (d *ignitionDecoder) link(i int, l types.Link) {
	target := ""
	if l.Target != nil {
		target = *l.Target
	}
	if l.Path == "/etc/localtime" && (l.Hard == nil || !*l.Hard) {
		if !path.IsAbs(target) {
			target = path.Join("/etc", target)
		}
		if zone, ok := strings.CutPrefix(target, zoneInfo); ok && validate.Timezone(zone) == nil {
			d.Node.Config.Timezone = zone
			return
		}
	}
	d.lostAt(list("storage", "links", i), "the link %s; a Profile has none, a unit of systemd-tmpfiles makes some (/etc/tmpfiles.d)", shorten(l.Path))
}

// The files that the encoder makes of other parts of a Config.
const (
	hostnameFile = "/etc/hostname"
	zoneFile     = "/etc/timezone"
	sudoersFile  = "/etc/sudoers.d/90-coldrack"
)

func (d *ignitionDecoder) storageFile(i int, f types.File) {
	line, field := d.at("storage", "files", i)
	if len(f.Append) > 0 {
		d.lost(line, field, "what is appended to %s; give the whole file", shorten(f.Path))
		return
	}
	owner, err := ownerOf(f.Node)
	if err != nil {
		d.lost(line, field, "the file %s: %v", shorten(f.Path), err)
		return
	}
	content, lost, err := contentOf(f.Contents)
	switch {
	case err != nil:
		d.problem(line, field, "the file %s: %v", shorten(f.Path), err)
		return
	case lost != "":
		d.lost(line, field, "the file %s: %s", shorten(f.Path), lost)
		return
	}
	switch {
	case f.Path == hostnameFile && validate.Hostname(strings.TrimSuffix(string(content), "\n")) == nil:
		d.Node.Config.Hostname = strings.TrimSuffix(string(content), "\n")
		return
	case f.Path == zoneFile && string(content) == d.Node.Config.Timezone+"\n":
		return
	case f.Path == sudoersFile && string(content) == sudoers(d.Node.Config.Users):
		return
	case f.Path == updateConf:
		if u, ok := parseUpdateConf(string(content)); ok {
			d.Node.Update = u
			return
		}
	}
	out := nodeconfig.File{Path: f.Path, Content: content, Owner: owner}
	if f.Mode != nil {
		out.Mode = uint32(*f.Mode) & 0o777 // as Ignition does, of which there is a warning
	}
	d.file(line, field, out)
}

// sudoers is the file that lets logins become root.
func sudoers(users []nodeconfig.User) string {
	var bare []nodeconfig.User
	for _, u := range users {
		bare = append(bare, nodeconfig.User{Name: u.Name, Sudo: u.Sudo})
	}
	ops, _ := nodeconfig.Portable(nodeconfig.Config{Users: bare})
	for _, op := range ops {
		if op.Path == sudoersFile {
			return string(op.Content)
		}
	}
	return ""
}

// ownerOf is user:group; "" for root's.
func ownerOf(n types.Node) (string, error) {
	name := func(id *int, name *string, what string) (string, error) {
		switch {
		case name != nil && *name != "":
			return *name, nil
		case id == nil || *id == 0:
			return "root", nil
		}
		return "", fmt.Errorf("its %s is number %d; Coldrack takes names", what, *id)
	}
	user, err := name(n.User.ID, n.User.Name, "owner")
	if err != nil {
		return "", err
	}
	group, err := name(n.Group.ID, n.Group.Name, "group")
	if err != nil || user+group == "rootroot" {
		return "", err
	}
	return user + ":" + group, nil
}

// contentOf decodes what a file says itself; lost is why it does not.
func contentOf(r types.Resource) (content []byte, lost string, err error) {
	if r.Source == nil || *r.Source == "" {
		return nil, "", nil
	}
	if !strings.HasPrefix(*r.Source, "data:") {
		return nil, fmt.Sprintf("it is loaded from %s at the first boot; put its content into the file", shorten(*r.Source)), nil
	}
	u, err := dataurl.DecodeString(*r.Source)
	if err != nil {
		return nil, "", fmt.Errorf("its data URL: %w", err)
	}
	content = u.Data
	if r.Compression != nil && *r.Compression == "gzip" {
		if content, err = gunzip(content); err != nil {
			return nil, "", err
		}
	}
	if r.Verification.Hash != nil {
		if err := verify(*r.Verification.Hash, content); err != nil {
			return nil, "", err
		}
	}
	return content, "", nil
}

func gunzip(b []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("its content is not compressed by gzip: %w", err)
	}
	out, err := io.ReadAll(io.LimitReader(z, MaxSize+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("its content is not compressed by gzip: %w", err)
	case len(out) > MaxSize:
		return nil, fmt.Errorf("its content has more than %d bytes uncompressed", MaxSize)
	}
	return out, nil
}

// verify compares a content with its digest, as Ignition does. The library has checked the digest's form.
func verify(want string, content []byte) error {
	kind, digest, _ := strings.Cut(want, "-")
	var sum []byte
	switch kind {
	case "sha256":
		s := sha256.Sum256(content)
		sum = s[:]
	default:
		s := sha512.Sum512(content)
		sum = s[:]
	}
	if got := hex.EncodeToString(sum); got != strings.ToLower(digest) {
		return fmt.Errorf("its content has the digest %s-%s…, and not %s…", kind, got[:12], shorten(want)[:min(len(want), 19)])
	}
	return nil
}

func (d *ignitionDecoder) systemd(units []types.Unit) {
	for i, u := range units {
		line, field := d.at("systemd", "units", i)
		unit := nodeconfig.Unit{Name: u.Name, Enabled: u.Enabled != nil && *u.Enabled, Masked: u.Mask != nil && *u.Mask}
		if u.Contents != nil {
			unit.Content = *u.Contents
		}
		if u.Enabled != nil && !*u.Enabled && unit.Content == "" && !unit.Masked {
			d.lostAt(list("systemd", "units", i, "enabled"), "%s stays enabled where the image has it so; mask it instead", shorten(u.Name))
		}
		d.unit(line, field, unit)
		for j, drop := range u.Dropins {
			line, field := d.at("systemd", "units", i, "dropins", j)
			if drop.Contents == nil {
				continue
			}
			if !validate.IsUnitName(u.Name) {
				d.lost(line, field, "a part of the unit %q, which is no unit of Coldrack's", shorten(u.Name))
				continue
			}
			d.dropIn(line, field, u.Name, drop.Name, *drop.Contents)
		}
	}
}
