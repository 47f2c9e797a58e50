package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/cri-shim/cri-shim/cri"
	"github.com/cri-shim/cri-shim/image"
)

func jsonFlag() cli.Flag { return &cli.BoolFlag{Name: "json", Usage: "print JSON"} }

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// shown is the names of an image, or the beginning of its ID.
func shown(names []string, id string) string {
	if len(names) == 0 {
		return shortID(id)
	}
	return strings.Join(names, " ")
}

func shortID(id string) string { return fmt.Sprintf("%.12s", strings.TrimPrefix(id, "sha256:")) }

func showDiskUse(ctx context.Context, cmd *cli.Command) error {
	return withAdmin(cmd, func(c *cri.AdminClient) error {
		u, err := c.ImageDiskUse(ctx)
		if err != nil {
			return err
		}
		if cmd.Bool("json") {
			return printJSON(cmd.Root().Writer, u)
		}
		return printDiskUse(cmd.Root().Writer, u)
	})
}

func printDiskUse(out io.Writer, u *image.DiskUse) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tALONE\tSHARED\tUSED BY\tPLATFORM\tIMAGE")
	for _, i := range u.Images {
		used := fmt.Sprint(len(i.Holders))
		switch {
		case i.Removed:
			used += ", removed"
		case i.Pinned:
			used += ", pinned"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", shortID(i.ID), size(uint64(i.Unique)), size(uint64(i.Size-i.Unique)), used,
			cmp.Or(i.Platform, "-"), shown(i.Names, i.ID))
	}
	fmt.Fprintln(w)
	for _, row := range []struct {
		what  string
		bytes int64
		note  string
	}{
		{"layers", u.Bytes, fmt.Sprintf("%d, each once", u.Layers)},
		{"  of no image", u.LooseBytes, fmt.Sprintf("%d, left by pulls that failed", u.LooseLayers)},
		{"parts of downloads", u.Partial, ""},
		{"compressed blobs", u.Blobs, ""},
		{"replaced layers", u.Damaged, "mounted by containers still"},
		{"in progress, trash", u.Transient, ""},
	} {
		if row.bytes > 0 {
			fmt.Fprintf(w, "%s\t%s\t%s\n", row.what, size(uint64(row.bytes)), row.note)
		}
	}
	return w.Flush()
}

func freeImages(ctx context.Context, cmd *cli.Command) error {
	o := image.FreeOptions{DryRun: cmd.Bool("dry-run"), Unused: cmd.Bool("unused"), MinAge: cmd.Duration("min-age")}
	return withAdmin(cmd, func(c *cri.AdminClient) error {
		f, err := c.ImageFree(ctx, o)
		if err != nil {
			return err
		}
		if cmd.Bool("json") {
			return printJSON(cmd.Root().Writer, f)
		}
		out := cmd.Root().Writer
		for _, i := range f.Images {
			fmt.Fprintf(out, "image  %s  %s\n", shortID(i.ID), shown(i.Names, i.ID))
		}
		for _, l := range f.Layers {
			fmt.Fprintf(out, "layer  %s  %s\n", shortID(l.ID.String()), size(uint64(l.Bytes)))
		}
		for _, x := range f.Files {
			fmt.Fprintf(out, "file   %s  %s\n", x.Path, size(uint64(x.Bytes)))
		}
		verb := "freed"
		if o.DryRun {
			verb = "would be freed"
		}
		fmt.Fprintf(out, "%d images, %d layers, %d files, %s %s\n", len(f.Images), len(f.Layers), len(f.Files), size(uint64(f.Bytes)), verb)
		return nil
	})
}

func verifyImages(ctx context.Context, cmd *cli.Command) error {
	o := image.VerifyOptions{Images: cmd.Args().Slice(), Repair: cmd.Bool("repair")}
	return withAdmin(cmd, func(c *cri.AdminClient) error {
		r, err := c.ImageVerify(ctx, o)
		if err != nil {
			return err
		}
		if cmd.Bool("json") {
			if err := printJSON(cmd.Root().Writer, r); err != nil {
				return err
			}
		} else {
			printVerified(cmd.Root().Writer, r)
		}
		left := 0
		for _, d := range r.Damaged {
			if !d.Repaired {
				left++
			}
		}
		if left > 0 {
			return fmt.Errorf("image verify: %d of %d layers are damaged", left, r.Layers)
		}
		return nil
	})
}

func printVerified(out io.Writer, r *image.VerifyReport) {
	for _, p := range r.Problems {
		fmt.Fprintf(out, "unusable  %s\n", p)
	}
	for _, d := range r.Damaged {
		fmt.Fprintf(out, "damaged   %s: %s\n", d.Layer, d.Problem)
		fmt.Fprintf(out, "  of      %s\n", shown(d.Images, "no image"))
		switch {
		case d.Repaired && len(d.Images) == 0:
			fmt.Fprintln(out, "  removed")
		case d.Repaired && len(d.Running) > 0:
			fmt.Fprintf(out, "  repaired; these containers have the damaged one until they are made anew: %s\n", strings.Join(d.Running, " "))
		case d.Repaired:
			fmt.Fprintln(out, "  repaired")
		case d.Error != "":
			fmt.Fprintf(out, "  not repaired: %s\n", d.Error)
		default:
			fmt.Fprintln(out, "  to fetch it again: cri-shim image verify --repair")
		}
	}
	fmt.Fprintf(out, "%d layers, %s, verified in %v: %d damaged\n", r.Layers, size(uint64(r.Bytes)), r.Took.Round(time.Millisecond), len(r.Damaged))
}
