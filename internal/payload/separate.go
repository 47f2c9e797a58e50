//go:build !payload

package payload

// Built without `make build`, by go test or an editor, the programs are looked for beside this one.
// A build tag, not an optional file, decides this: tests never run a stale program that an earlier
// build left behind.
var (
	supervisor     string
	initProgram    string
	classesProgram string
)
