package cli

import (
	"testing"
	"time"

	"github.com/spf13/cobra"
)

func TestManPages(t *testing.T) {
	root := &cobra.Command{Use: "rack", Short: "Racks, from a shell", Long: "Rack does\nthings.\n\n.hidden files, too, and C:\\PATH.", Version: "v1"}
	root.PersistentFlags().StringP("output", "o", "table", "format")
	root.AddGroup(&cobra.Group{ID: "all", Title: "All:"})
	verb := &cobra.Command{Use: "list [NAME]", GroupID: "all", Short: "List racks", Example: "  rack list\n  rack list 'a b'", Run: func(*cobra.Command, []string) {}}
	verb.AddCommand(&cobra.Command{Use: "units", Short: "List units", Run: func(*cobra.Command, []string) {}})
	verb.AddCommand(&cobra.Command{Use: "secret", Hidden: true, Run: func(*cobra.Command, []string) {}})
	verb.Flags().Bool("long", false, "all columns")
	root.AddCommand(verb, &cobra.Command{Use: "debug", Hidden: true, Run: func(*cobra.Command, []string) {}})
	root.CompletionOptions.DisableDefaultCmd = true

	pages := ManPages(root, time.Date(2026, 2, 3, 23, 0, 0, 0, time.FixedZone("east", 2*3600)))
	want := map[string]string{
		"rack.1": `.TH "RACK" 1 "2026\-02\-03" "rack v1" "Coldrack"
.\" Written by the program itself.
.SH "NAME"
rack \- Racks, from a shell
.SH "SYNOPSIS"
.PP
\fBrack COMMAND [ARGUMENTS] [FLAGS]\fR
.SH "DESCRIPTION"
.PP
Rack does
things.
.PP
\&.hidden files, too, and C:\ePATH.
.SH "COMMANDS"
.SS "All"
.TP
\fBrack\-list(1)\fR
List racks
.SH "FLAGS OF ALL COMMANDS"
.TP
\fB\-o, \-\-output STRING\fR
format (default table)
`,
		"rack-list.1": `.TH "RACK\-LIST" 1 "2026\-02\-03" "rack v1" "Coldrack"
.\" Written by the program itself.
.SH "NAME"
rack\-list \- List racks
.SH "SYNOPSIS"
.PP
\fBrack list [NAME] [flags]\fR
.SH "DESCRIPTION"
.PP
List racks.
.SS "Examples"
.PP
.nf
rack list
rack list \(aqa b\(aq
.fi
.SS "Flags"
.TP
\fB\-\-long\fR
all columns
.SH "RACK LIST UNITS"
.PP
\fBrack list units\fR
.PP
List units.
.SH "FLAGS OF ALL COMMANDS"
.TP
\fB\-o, \-\-output STRING\fR
format (default table)
.SH "SEE ALSO"
.PP
\fBrack(1)\fR
`,
	}
	if len(pages) != len(want) {
		t.Errorf("%d pages, want %d", len(pages), len(want))
	}
	for name, text := range want {
		if pages[name] != text {
			t.Errorf("%s is\n%s\nwant\n%s", name, pages[name], text)
		}
	}
}
