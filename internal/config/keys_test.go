package config

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// TestEveryKeyHasAnEffect: a key that no function of the programs reads is a promise that nobody keeps. Read
// means named on a parameter of type config.Config; that Status shows all keys by reflection does not count.
func TestEveryKeyHasAnEffect(t *testing.T) {
	read := map[string]bool{}
	err := filepath.WalkDir(filepath.Join("..", "..", "cmd"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Body != nil {
				fieldsRead(f, read)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	fields := reflect.TypeFor[Config]()
	for i := range fields.NumField() {
		if f := fields.Field(i); !read[f.Name] {
			t.Errorf("%s: no program reads it; give it an effect or remove it", f.Tag.Get("toml"))
		}
	}
}

// fieldsRead adds the fields of its parameters of type Config that f names.
func fieldsRead(f *ast.FuncDecl, read map[string]bool) {
	params := map[string]bool{}
	for _, p := range f.Type.Params.List {
		typ := p.Type
		if star, ok := typ.(*ast.StarExpr); ok {
			typ = star.X
		}
		if s, ok := typ.(*ast.SelectorExpr); ok && s.Sel.Name == "Config" && isIdent(s.X, "config") {
			for _, name := range p.Names {
				params[name.Name] = true
			}
		}
	}
	ast.Inspect(f.Body, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if id, ok := s.X.(*ast.Ident); ok && params[id.Name] {
				read[s.Sel.Name] = true
			}
		}
		return true
	})
}

func isIdent(e ast.Expr, name string) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == name
}
