package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/request"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

const (
	// auditMost is how many records the server gives at once.
	auditMost = 500
	// auditLook is how often --follow asks for what is new.
	auditLook = 2 * time.Second
)

// auditAsk is what is asked of the audit log.
type auditAsk struct {
	user, verb, object, since, until string
	people, failed, follow           bool
	limit                            int
}

func (a *app) auditCommand() *cobra.Command {
	var ask auditAsk
	var output string
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Show who did what, from the server's audit log",
		Long: `Show the records of the audit log of the server that answers, the newest first. Needs role admin. With several servers on one etcd each has
a log of its own. A search reads back until it has as many records as --limit says, or has seen the whole log.`,
		Example: `  coldrack audit --people
  coldrack audit --user anna --object machines/node-7 --since 24h
  coldrack audit --failed --verb delete -o json
  coldrack audit --people --follow`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			query, err := ask.query(a.now())
			if err != nil {
				return err
			}
			if ask.follow {
				if output != "" {
					return exit.Usagef("--follow prints lines for people; leave out --output")
				}
				return a.followAudit(cmd.Context(), query)
			}
			records, err := a.searchAudit(cmd.Context(), query, ask.limit)
			if err != nil {
				return err
			}
			if done, err := a.printStructured(output, records); done {
				return err
			}
			return a.printAudit(records)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&ask.user, "user", "", "only users whose name has this in it")
	flags.StringVar(&ask.verb, "verb", "", "only this verb: create, update, patch, delete, post …")
	flags.StringVar(&ask.object, "object", "", "only objects or paths that have this in them, such as machines/node-7")
	flags.StringVar(&ask.since, "since", "", "only since a time (RFC 3339) or within a duration (90m, 24h)")
	flags.StringVar(&ask.until, "until", "", "only until a time, or until so long ago")
	flags.BoolVar(&ask.people, "people", false, "leave out what the server itself did")
	flags.BoolVar(&ask.failed, "failed", false, "only what was refused or failed")
	flags.IntVar(&ask.limit, "limit", 100, "how many records")
	flags.BoolVarP(&ask.follow, "follow", "f", false, "go on printing new records until interrupted")
	_ = cmd.RegisterFlagCompletionFunc("verb", cobra.FixedCompletions([]string{"create", "update", "patch", "delete", "get", "list", "watch", "post", "put"}, cobra.ShellCompDirectiveNoFileComp))
	for _, name := range []string{"user", "object", "since", "until", "limit"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

// query is what the server is asked.
func (ask auditAsk) query(now time.Time) (url.Values, error) {
	if ask.limit < 1 {
		return nil, exit.Usagef("--limit is %d, want at least 1", ask.limit)
	}
	q := url.Values{}
	set := func(key, value string) {
		if value != "" {
			q.Set(key, value)
		}
	}
	set("user", ask.user)
	set("verb", ask.verb)
	set("object", ask.object)
	for key, text := range map[string]string{"since": ask.since, "until": ask.until} {
		at, err := moment(text, now)
		if err != nil {
			return nil, exit.Usagef("--%s %s: must be a time as 2026-11-30T08:00:00Z, or a duration as 24h", key, text)
		}
		set(key, at)
	}
	for key, on := range map[string]bool{"people": ask.people, "failed": ask.failed} {
		if on {
			q.Set(key, "1")
		}
	}
	return q, nil
}

// moment is a time, or how long ago it was, as RFC 3339; "" stays.
func moment(text string, now time.Time) (string, error) {
	if text == "" {
		return "", nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago).UTC().Format(time.RFC3339), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	return at.UTC().Format(time.RFC3339), err
}

// auditPage asks for one part of the log.
func (a *app) auditPage(ctx context.Context, query url.Values) (page peoplewire.AuditPage, err error) {
	config, err := a.connect()
	if err != nil {
		return page, err
	}
	return page, request.Find(ctx, config, "read the audit log", query, &page, peoplewire.PathAudit)
}

// searchAudit asks for parts until there are enough records.
func (a *app) searchAudit(ctx context.Context, query url.Values, limit int) ([]peoplewire.AuditRecord, error) {
	records, unreadable := []peoplewire.AuditRecord{}, 0
	for len(records) < limit {
		query.Set("limit", strconv.Itoa(min(limit-len(records), auditMost)))
		page, err := a.auditPage(ctx, query)
		if err != nil {
			return nil, err
		}
		records = append(records, page.Records...)
		unreadable += page.Unreadable
		if page.Older == "" {
			break
		}
		query.Set("before", page.Older)
	}
	if unreadable > 0 {
		fmt.Fprintf(a.err, "note: %d lines of the audit log are no records and were passed over: the server was killed within them, or somebody changed them\n", unreadable)
	}
	return records, nil
}

func (a *app) printAudit(records []peoplewire.AuditRecord) error {
	if len(records) == 0 {
		fmt.Fprintln(a.err, "no record matches")
		return nil
	}
	table := &cli.Table{Header: []string{"TIME", "USER", "VERB", "OBJECT", "RESULT", "MESSAGE"}}
	for _, r := range records {
		table.Add(auditColumns(r)...)
	}
	return table.Print(a.out, true)
}

func auditColumns(r peoplewire.AuditRecord) []string {
	message := ""
	if r.Code >= 400 {
		message = r.Message
	}
	return []string{r.At.UTC().Format(time.RFC3339), r.User, r.Verb, cmp.Or(r.Object, r.URI), strconv.Itoa(r.Code), message}
}

// followAudit prints records as they come, the newest last, until ctx ends.
func (a *app) followAudit(ctx context.Context, query url.Values) error {
	query.Set("limit", "1")
	page, err := a.auditPage(ctx, query)
	if err != nil {
		return err
	}
	query.Set("limit", strconv.Itoa(auditMost))
	place := page.Newest
	for {
		select {
		case <-ctx.Done():
			return nil // the person has seen enough
		case <-time.After(auditLook):
		}
		query.Set("after", place)
		query.Del("before")
		var records []peoplewire.AuditRecord
		for {
			page, err := a.auditPage(ctx, query)
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil
			}
			if err != nil {
				return err
			}
			if query.Get("before") == "" {
				place = page.Newest
			}
			records = append(records, page.Records...)
			if page.Older == "" {
				break
			}
			query.Set("before", page.Older)
		}
		slices.Reverse(records)
		table := &cli.Table{}
		for _, r := range records {
			table.Add(auditColumns(r)...)
		}
		if err := table.Print(a.out, false); err != nil {
			return err
		}
	}
}
