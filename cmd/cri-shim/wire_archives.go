package main

import (
	"context"
	"io"
	"slices"

	"github.com/cri-shim/cri-shim/image"
)

// archives is cri.Archives over the image store.
type archives struct{ store *image.Store }

// Import implements cri.Archives.
func (a archives) Import(ctx context.Context, r io.Reader, o image.ImportOptions) ([]string, error) {
	images, err := a.store.Import(ctx, r, o)
	var names []string
	add := func(name string) {
		if !slices.Contains(names, name) { // of another platform
			names = append(names, name)
		}
	}
	for _, img := range images {
		if len(img.RepoTags) == 0 {
			add(img.ID)
		}
		for _, tag := range img.RepoTags {
			add(tag)
		}
	}
	return names, err
}

// Export implements cri.Archives.
func (a archives) Export(ctx context.Context, w io.Writer, refs []string, o image.ExportOptions) error {
	return a.store.Export(ctx, w, refs, o)
}
