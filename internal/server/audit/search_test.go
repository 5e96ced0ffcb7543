package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var searchBegin = time.Date(2026, 11, 30, 8, 0, 0, 0, time.UTC)

// eventLine is the n-th record: one a second.
func eventLine(n int, user, verb, resource, name string, code int) string {
	at := searchBegin.Add(time.Duration(n) * time.Second).Format("2006-01-02T15:04:05.000000Z07:00")
	return fmt.Sprintf(`{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Request","auditID":"id-%d","stage":"ResponseComplete","requestURI":"/apis/coldrack.dev/v1alpha1/%s/%s","verb":%q,`+
		`"user":{"username":%q,"groups":["x"]},"sourceIPs":["127.0.0.1"],"objectRef":{"resource":%q,"name":%q},"responseStatus":{"metadata":{},"code":%d},"requestObject":{"spec":{"n":%d}},`+
		`"requestReceivedTimestamp":%q,"stageTimestamp":%q}`+"\n", n, resource, name, verb, user, resource, name, code, n, at, at)
}

func ids(f Found) string {
	var all []string
	for _, r := range f.Records {
		all = append(all, strings.TrimPrefix(r.ID, "id-"))
	}
	return strings.Join(all, " ")
}

// searchLog writes a log of three files: 0 to 9, 10 to 19, 20 to 29.
func searchLog(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "audit.log")
	for part := range 3 {
		var text strings.Builder
		for n := part * 10; n < part*10+10; n++ {
			user, verb, code := []string{"anna", "bert", serverUser}[n%3], "patch", 200
			if n%10 == 4 {
				verb, code = "delete", 403
			}
			text.WriteString(eventLine(n, user, verb, "machines", fmt.Sprintf("node-%02d", n), code))
		}
		name := file
		end := searchBegin.Add(time.Duration(part*10+9) * time.Second)
		if part < 2 {
			name = strings.TrimSuffix(file, ".log") + "-" + end.Format("2006-01-02T15-04-05.000") + ".log"
		}
		if err := os.WriteFile(name, []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, end, end); err != nil {
			t.Fatal(err)
		}
	}
	return file
}

func TestSearch(t *testing.T) {
	file := searchLog(t)
	at := func(n int) time.Time { return searchBegin.Add(time.Duration(n) * time.Second) }
	for _, tc := range []struct {
		name string
		q    Query
		want string
	}{
		{"all, the newest first", Query{}, "29 28 27 26 25 24 23 22 21 20 19 18 17 16 15 14 13 12 11 10 9 8 7 6 5 4 3 2 1 0"},
		{"as many as wanted", Query{Most: 3}, "29 28 27"},
		{"by a part of the name, whatever its case", Query{User: "NN", Most: 3}, "27 24 21"},
		{"by verb", Query{Verb: "Delete"}, "24 14 4"},
		{"by object", Query{Object: "Node-0", Most: 2}, "9 8"},
		{"by kind and object", Query{Object: "machines/node-17"}, "17"},
		{"of people", Query{People: true, Most: 3}, "28 27 25"},
		{"refused", Query{Failed: true}, "24 14 4"},
		{"since a time", Query{Since: at(27)}, "29 28 27"},
		{"until a time", Query{Until: at(2)}, "2 1 0"},
		{"between two times", Query{Since: at(9), Until: at(11)}, "11 10 9"},
		{"all at once", Query{Since: at(3), Until: at(20), User: "bert", Verb: "delete"}, "4"},
		{"nothing", Query{User: "nobody"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			found, err := search(t.Context(), file, tc.q)
			if err != nil || ids(found) != tc.want {
				t.Errorf("found %s, %v; want %s", ids(found), err, tc.want)
			}
		})
	}
	found, err := search(t.Context(), file, Query{Most: 1})
	if err != nil {
		t.Fatal(err)
	}
	r := found.Records[0]
	if r.User != serverUser || r.Object != "machines/node-29" || r.Code != 200 || string(r.Sent) != `{"spec":{"n":29}}` || !r.At.Equal(at(29)) || !slices.Equal(r.Sources, []string{"127.0.0.1"}) {
		t.Errorf("%+v", r)
	}
}

// TestSearchInPages reads page after page, over the ends of files, while the log grows and its file gets another name.
func TestSearchInPages(t *testing.T) {
	file := searchLog(t)
	var all []string
	q := Query{Most: 7}
	for page := 0; ; page++ {
		found, err := search(t.Context(), file, q)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ids(found))
		if found.Older == "" {
			break
		}
		q.Before = found.Older
		if page == 0 {
			if err := os.Rename(file, strings.TrimSuffix(file, ".log")+"-2026-11-30T09-00-00.000.log"); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(eventLine(30, "anna", "patch", "machines", "x", 200)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := strings.Join(all, " | "); got != "29 28 27 26 25 24 23 | 22 21 20 19 18 17 16 | 15 14 13 12 11 10 9 | 8 7 6 5 4 3 2 | 1 0" {
		t.Errorf("pages: %s", got)
	}
}

// TestSearchNewer finds what came after a place, also in the next file, and nothing twice.
func TestSearchNewer(t *testing.T) {
	file := searchLog(t)
	add := func(text string) {
		t.Helper()
		f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = f.WriteString(text)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	var place Place
	look := func(want string) {
		t.Helper()
		found, err := search(t.Context(), file, Query{After: place})
		if err != nil || ids(found) != want {
			t.Errorf("found %q, %v; want %q", ids(found), err, want)
		}
		place = found.Newest
	}
	first, err := search(t.Context(), file, Query{Most: 1})
	if err != nil {
		t.Fatal(err)
	}
	place = first.Newest
	look("")
	add(eventLine(30, "anna", "patch", "machines", "a", 200))
	look("30")
	half := eventLine(31, "anna", "patch", "machines", "a", 200)
	add(half[:40]) // it is being written
	look("")
	add(half[40:])
	look("31")
	if err := os.Rename(file, strings.TrimSuffix(file, ".log")+"-2026-11-30T09-00-00.000.log"); err != nil {
		t.Fatal(err)
	}
	look("")
	add(eventLine(32, "anna", "patch", "machines", "a", 200) + eventLine(33, "bert", "patch", "machines", "a", 200))
	look("33 32")
}

// TestSearchOfWhatIsBroken passes over lines that are no records, and refuses places that are none.
func TestSearchOfWhatIsBroken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.log")
	if found, err := search(t.Context(), file, Query{}); err != nil || len(found.Records) != 0 || found.Newest != "" {
		t.Errorf("no log: %+v, %v", found, err)
	}
	line := eventLine(1, "anna", "patch", "machines", "a", 200)
	text := line + line[:50] + "\n" + "null\n\n[]\n" + strings.Repeat("x", 3*chunk) + "\n" + eventLine(2, "anna", "patch", "machines", strings.Repeat("n", 2*chunk), 200) + `{"torn`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	found, err := search(t.Context(), file, Query{})
	if err != nil || ids(found) != "2 1" || found.Unreadable != 4 {
		t.Errorf("found %s, %d unreadable, %v", ids(found), found.Unreadable, err)
	}
	for _, bad := range []Place{"x", "1-", "-1", "ffffffff-0", found.Newest + "1", "1--5", found.Newest[:strings.Index(string(found.Newest), "-")] + "-3"} {
		if _, err := search(t.Context(), file, Query{Before: bad}); !errors.Is(err, ErrPlace) {
			t.Errorf("place %q: %v", bad, err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := search(ctx, file, Query{}); !errors.Is(err, context.Canceled) {
		t.Errorf("who hangs up: %v", err)
	}
}

// TestSearchIsBounded goes on in the next search where one has read enough.
func TestSearchIsBounded(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.log")
	long := strings.Repeat("n", 1<<20)
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for n := range 70 {
		user := "bert"
		if n == 0 {
			user = "anna"
		}
		line := eventLine(n, user, "patch", "machines", "a", 200)
		line = strings.Replace(line, `"groups":["x"]`, `"groups":["`+long+`"]`, 1)
		if _, err := f.WriteString(line); err != nil {
			t.Fatal(err)
		}
	}
	found, err := search(t.Context(), file, Query{User: "anna"})
	if err != nil || len(found.Records) != 0 || found.Older == "" || found.Reached.IsZero() {
		t.Fatalf("the first search: %+v, %v", found, err)
	}
	found, err = search(t.Context(), file, Query{User: "anna", Before: found.Older})
	if err != nil || ids(found) != "0" || found.Older != "" {
		t.Errorf("the second search: %s, older %q, %v", ids(found), found.Older, err)
	}
}

func FuzzBackwards(f *testing.F) {
	f.Add([]byte("a\nbc\n\nd\n"))
	f.Add([]byte("\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		end, err := wholeLines(bytes.NewReader(text), int64(len(text)))
		if err != nil {
			t.Fatal(err)
		}
		var got [][]byte
		if err := backwards(bytes.NewReader(text), 0, end, func(at int64, line []byte) bool {
			if !bytes.Equal(text[at:at+int64(len(line))], line) || text[at+int64(len(line))] != '\n' {
				t.Errorf("line at %d is %q", at, line)
			}
			got = append([][]byte{bytes.Clone(line)}, got...)
			return true
		}); err != nil {
			t.Fatal(err)
		}
		want := bytes.FieldsFunc(text[:end], func(r rune) bool { return r == '\n' })
		if !slices.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("lines %q, want %q", got, want)
		}
	})
}
