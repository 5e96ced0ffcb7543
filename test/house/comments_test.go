package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
)

// TestCommentsNameWhatTheyDescribe finds comments that were left behind when what they describe was renamed: they begin
// with the same word in other case or number, or with an identifier that is another one.
func TestCommentsNameWhatTheyDescribe(t *testing.T) {
	root := filepath.Join("..", "..")
	files := token.NewFileSet()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != root && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "build"):
			return filepath.SkipDir
		case entry.IsDir() || !strings.HasSuffix(path, ".go"):
			return nil
		}
		file, err := parser.ParseFile(files, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		if ast.IsGenerated(file) {
			return nil
		}
		for _, c := range misnamed(file) {
			t.Errorf("%s: the comment of %s begins with %q", files.Position(c.at), c.name, c.first)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

type misnamedComment struct {
	at          token.Pos
	name, first string
}

func misnamed(file *ast.File) []misnamedComment {
	var found []misnamedComment
	check := func(doc *ast.CommentGroup, names ...*ast.Ident) {
		if doc == nil || len(names) != 1 {
			return
		}
		first := strings.TrimRightFunc(doc.Text(), unicode.IsSpace)
		if end := strings.IndexFunc(first, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '_' }); end >= 0 {
			first = first[:end]
		}
		if name := names[0].Name; first != name && (almost(first, name) || camel(first)) {
			found = append(found, misnamedComment{names[0].Pos(), name, first})
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BlockStmt:
			return false // comments within functions are sentences
		case *ast.FuncDecl:
			check(n.Doc, n.Name)
		case *ast.Field:
			check(n.Doc, n.Names...)
		case *ast.GenDecl:
			for _, spec := range n.Specs {
				doc := func(own *ast.CommentGroup) *ast.CommentGroup {
					if own == nil && len(n.Specs) == 1 {
						return n.Doc
					}
					return own
				}
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					check(doc(spec.Doc), spec.Name)
				case *ast.ValueSpec:
					check(doc(spec.Doc), spec.Names...)
				}
			}
		}
		return true
	})
	return found
}

// almost says whether two words differ only in case or in an s at the end.
func almost(a, b string) bool {
	return strings.EqualFold(strings.TrimSuffix(a, "s"), strings.TrimSuffix(b, "s")) && !strings.EqualFold(a, "a")
}

// camel says whether a word is an identifier that is not exported and of several words.
func camel(s string) bool {
	return s != "" && unicode.IsLower(rune(s[0])) && s != strings.ToLower(s)
}

func TestMisnamedComments(t *testing.T) {
	const source = `package x

// Alpha was exported once.
func alpha() {}

// betas were several.
type beta struct {
	// fieldOne was its name.
	fieldTwo int
	// Another sentence about it.
	other int
}

// oldName was its name.
var newName = 1

// gamma is right.
const gamma = 1

// iPXE is no identifier of ours, but looks like one.
const delta = 1

// The first word is an article.
func epsilon() {}

/* zeta() is called. */
func zeta() {
	// Zeta inside a function.
	var zeta int
	_ = zeta
}
`
	file, err := parser.ParseFile(token.NewFileSet(), "x.go", source, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range misnamed(file) {
		got = append(got, c.name)
	}
	if want := "alpha beta fieldTwo newName delta"; strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
