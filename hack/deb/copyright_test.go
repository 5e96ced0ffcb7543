package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestHolders(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"Copyright 2014 Vishvananda Ishaya.", "Copyright 2014 Vishvananda Ishaya."},
		{"   Copyright (c) 2012 The Go   Authors. All rights reserved.", "Copyright (c) 2012 The Go Authors. All rights reserved."},
		{"// Copyright The OpenTelemetry Authors", "Copyright The OpenTelemetry Authors"},
		{" * Copyright © 2013 Dave Collins", "Copyright © 2013 Dave Collins"},
		{"(c) 2019 Someone", "(c) 2019 Someone"},
		{"(c) You must retain, in the Source form of any Derivative Works", ""},
		{"   Copyright [yyyy] [name of copyright owner]", ""},
		{"   Copyright {yyyy} {name of copyright owner}", ""},
		{"copyright license to reproduce, prepare Derivative Works of,", ""},
		{"Copyright notice and this permission notice shall be included", ""},
		{"with the additional copyright starting in 2011", ""},
	} {
		if got := strings.Join(holders(c.line), "|"); got != c.want {
			t.Errorf("holders(%q) = %q; want %q", c.line, got, c.want)
		}
	}
}

const (
	expat = "The MIT License (MIT)\n\nCopyright (c) 2014 A Person\n\nPermission is hereby granted, free of charge, to any person\n"
	bsd   = "Copyright 2009 The Go Authors.\n\nRedistributions in binary form must reproduce the above copyright\nnotice. Neither the name nor the names of its\ncontributors may be used to endorse or promote products\n"
)

func TestKind(t *testing.T) {
	apache, err := os.ReadFile("../../LICENSE")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, text, want string }{
		{"Apache's", string(apache), "Apache-2.0"},
		{"MIT's", expat, "Expat"},
		{"three clauses hold the two", bsd, "BSD-3-clause"},
		{"two clauses", "Redistributions in binary form must reproduce the above copyright\nnotice", "BSD-2-clause"},
		{"two licences", expat + bsd, several},
		{"nothing known", "Do what you like.", other},
	} {
		if got := kind(c.text); got != c.want {
			t.Errorf("%s: %s; want %s", c.name, got, c.want)
		}
	}
}

// TestCopyright is about a made-up module cache; TestPackages looks at the real one.
func TestCopyright(t *testing.T) {
	apache, err := os.ReadFile("../../LICENSE")
	if err != nil {
		t.Fatal(err)
	}
	short, _, _ := strings.Cut(string(apache), "   APPENDIX")
	root := t.TempDir()
	module := func(name string, files map[string]string, packages ...string) linked {
		l := linked{path: "example.org/" + name, version: "v1.0.0", root: filepath.Join(root, name), packages: map[string][]string{}}
		for file, text := range files {
			file = filepath.Join(l.root, file)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range packages {
			l.packages[filepath.Join(l.root, p)] = []string{"a.go"}
		}
		return l
	}
	got, err := copyright(string(apache), []linked{
		module("appendix", map[string]string{"LICENSE": string(apache), "a.go": "// Copyright 2020 In The Source\n\npackage a\n"}, "."),
		module("short", map[string]string{"LICENSE.txt": short + "\n\tCopyright 2021 At The End\n", "NOTICE": "Please tell\n\nof us.\n"}),
		module("nested", map[string]string{"LICENSE": expat, "license.go": "package a\n", "linked/below/COPYING": bsd, "linked/below/a/a.go": "package a\n", "elsewhere/LICENSE": "Pay a lot.\n"}, "linked/below/a"),
		module("same", map[string]string{"LICENSE": strings.Replace(expat, "A Person", "Another", 1)}),
		module("odd", map[string]string{"LICENSE": "Do what\r\n\r\n\tyou like.\x0c\xff\n", "a.go": "package a\n\n// Copyright 2022 Not The Head\n"}, "."),
	})
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := strings.Cut(string(got), "License: Apache-2.0\n\n")
	const want = `Files: example.org/appendix@v1.0.0/*
Copyright: Copyright 2020 In The Source
License: Apache-2.0

Files: example.org/short@v1.0.0/*
Copyright: Copyright 2021 At The End
License: Apache-2.0
Comment: Its authors say:
 Please tell
 .
 of us.

Files: example.org/nested@v1.0.0/*
Copyright: Copyright (c) 2014 A Person
License: Expat

Files: example.org/nested@v1.0.0/linked/below/*
Copyright: Copyright 2009 The Go Authors.
License: BSD-3-clause

Files: example.org/same@v1.0.0/*
Copyright: Copyright (c) 2014 Another
License: Expat

Files: example.org/odd@v1.0.0/*
Copyright: the authors of example.org/odd, who state no notice
License: other

License: Apache-2.0
 On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.

License: Expat
 The MIT License (MIT)
 .
 .
 Permission is hereby granted, free of charge, to any person

License: BSD-3-clause
 Redistributions in binary form must reproduce the above copyright
 notice. Neither the name nor the names of its
 contributors may be used to endorse or promote products

License: other
 Do what
 .
     you like.
 ?
`
	if body != want {
		t.Errorf("got:\n%s\nwant:\n%s", body, want)
	}
	if _, err := copyright(string(apache), []linked{module("none", map[string]string{"README": expat})}); err == nil || !strings.Contains(err.Error(), "example.org/none@v1.0.0 has no file with a licence") {
		t.Errorf("a module without a licence: %v", err)
	}
	if got := unique([]string{"a", "b", "a"}); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("unique: %q", got)
	}
}
