package main

import (
	"context"
	"io"

	"github.com/cri-shim/cri-shim/image"
)

// archives is cri.Archives over the image store.
type archives struct{ store *image.Store }

// Import implements cri.Archives.
func (a archives) Import(ctx context.Context, r io.Reader, o image.ImportOptions) ([]string, error) {
	images, err := a.store.Import(ctx, r, o)
	var names []string
	for _, img := range images {
		if len(img.RepoTags) == 0 {
			names = append(names, img.ID)
			continue
		}
		names = append(names, img.RepoTags...)
	}
	return names, err
}

// Export implements cri.Archives.
func (a archives) Export(ctx context.Context, w io.Writer, refs []string) error {
	return a.store.Export(ctx, w, refs, image.ExportOptions{})
}
