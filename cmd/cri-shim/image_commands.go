package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v3"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/cri"
	"github.com/cri-shim/cri-shim/image"
)

func imageCommand() *cli.Command {
	return &cli.Command{
		Name:  "image",
		Usage: "list, inspect, pull, remove, import, export, verify and free images",
		Commands: []*cli.Command{{
			Name:    "ls",
			Aliases: []string{"list"},
			Usage:   "list images, with those for other platforms",
			Flags:   []cli.Flag{endpointFlag(), &cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print IDs only"}},
			Action:  noArguments(listImages),
		}, {
			Name:      "inspect",
			Usage:     "print what there is of images, for each platform, as JSON",
			ArgsUsage: "IMAGE...",
			Flags:     []cli.Flag{endpointFlag()},
			Action:    inspectImages,
		}, {
			Name:      "pull",
			Usage:     "pull images from their registries and print their IDs",
			ArgsUsage: "IMAGE...",
			Flags: []cli.Flag{endpointFlag(), credsFlag(), platformFlag("pull"), allPlatformsFlag("pull all of the image's platforms"),
				&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "no progress on standard error"}},
			Action: pullImages,
		}, {
			Name:      "why",
			Usage:     "say from where an image would be pulled, with which credentials, and what each host answers",
			ArgsUsage: "IMAGE",
			Flags: []cli.Flag{endpointFlag(), credsFlag(),
				&cli.BoolFlag{Name: "json", Usage: "print JSON"}},
			Action: explainImage,
		}, {
			Name:      "rm",
			Aliases:   []string{"remove"},
			Usage:     "remove images with all their names; one that is not there is no error",
			ArgsUsage: "IMAGE...",
			Flags:     []cli.Flag{endpointFlag()},
			Action:    removeImages,
		}, {
			Name:      "tag",
			Usage:     "give an image another name",
			ArgsUsage: "IMAGE NAME",
			Flags:     []cli.Flag{endpointFlag(), &cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "take the name from another image"}},
			Action:    tagImage,
		}, {
			Name:      "pin",
			Usage:     "keep images from being collected",
			ArgsUsage: "IMAGE...",
			Flags:     []cli.Flag{endpointFlag()},
			Action:    pinImages(true),
		}, {
			Name:      "unpin",
			Usage:     "let images be collected again",
			ArgsUsage: "IMAGE...",
			Flags:     []cli.Flag{endpointFlag()},
			Action:    pinImages(false),
		}, {
			Name:   "du",
			Usage:  "tell what takes the image store's disk: by image, shared and alone",
			Flags:  []cli.Flag{endpointFlag(), jsonFlag()},
			Action: noArguments(showDiskUse),
		}, {
			Name:  "gc",
			Usage: "free what nobody needs, and tell what that was",
			Flags: []cli.Flag{endpointFlag(), jsonFlag(),
				&cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "only tell"},
				&cli.BoolFlag{Name: "unused", Usage: "images, too, that no container has and that are not pinned"},
				&cli.DurationFlag{Name: "min-age", Usage: "spare what pulls left within this `TIME`, and images pulled within it"}},
			Action: noArguments(freeImages),
		}, {
			Name:      "verify",
			Usage:     "compare layers with their digests; all, or those of the images named",
			ArgsUsage: "[IMAGE...]",
			Flags: []cli.Flag{endpointFlag(), jsonFlag(),
				&cli.BoolFlag{Name: "repair", Usage: "fetch damaged layers again"}},
			Action: verifyImages,
		}, {
			Name:      "import",
			Usage:     "import images from an archive: an OCI image layout or the output of docker save",
			ArgsUsage: "FILE|-",
			Flags: []cli.Flag{endpointFlag(), &cli.BoolFlag{Name: "pin", Usage: "pin the images"},
				allPlatformsFlag("import all platforms that are in the archive")},
			Action: importImages,
		}, {
			Name:      "export",
			Usage:     "export images as an OCI image layout that docker load takes as well",
			ArgsUsage: "IMAGE...",
			Flags: []cli.Flag{endpointFlag(), platformFlag("export"), allPlatformsFlag("export all platforms that are here"), &cli.StringFlag{
				Name: "output", Aliases: []string{"o"}, Usage: "`FILE` to write, - for standard output", Value: "-",
			}},
			Action: exportImages,
		}},
	}
}

func platformFlag(verb string) cli.Flag {
	return &cli.StringSliceFlag{Name: "platform", Usage: verb + " for `OS/ARCH[/VARIANT]` instead of this machine's; more than once for several"}
}

func allPlatformsFlag(usage string) cli.Flag {
	return &cli.BoolFlag{Name: "all-platforms", Usage: usage}
}

// platforms are those that a command is to be done for.
func platformsOf(cmd *cli.Command) (names []string, all bool, err error) {
	names, all = cmd.StringSlice("platform"), cmd.Bool("all-platforms")
	if all && len(names) > 0 {
		return nil, false, fmt.Errorf("image %s: --platform and --all-platforms: want one of them", cmd.Name)
	}
	return names, all, nil
}

func credsFlag() cli.Flag {
	return &cli.StringFlag{
		Name:    "creds",
		Usage:   "`USER:PASSWORD` for the registry; in the environment nobody sees them with ps",
		Sources: cli.EnvVars("CRI_SHIM_CREDS"),
	}
}

// userPassword is the value of --creds; ok is false where there is none.
func userPassword(cmd *cli.Command) (user, password string, ok bool, err error) {
	creds := cmd.String("creds")
	if creds == "" {
		return "", "", false, nil
	}
	if user, password, ok = strings.Cut(creds, ":"); !ok {
		return "", "", false, fmt.Errorf("image %s: --creds: want USER:PASSWORD", cmd.Name)
	}
	return user, password, true, nil
}

// withImages calls f with a client of the daemon's image service.
func withImages(cmd *cli.Command, f func(pb.ImageServiceClient) error) error {
	conn, err := connect(cmd)
	if err != nil {
		return err
	}
	defer conn.Close()
	return f(pb.NewImageServiceClient(conn))
}

// someImages are a command's arguments, at least one.
func someImages(cmd *cli.Command) ([]string, error) {
	if !cmd.Args().Present() {
		return nil, fmt.Errorf("image %s: name at least one image", cmd.Name)
	}
	return cmd.Args().Slice(), nil
}

func listImages(ctx context.Context, cmd *cli.Command) error {
	return withAdmin(cmd, func(c *cri.AdminClient) error {
		all, err := c.ImageList(ctx)
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(cmd.Root().Writer, 0, 0, 2, ' ', 0)
		if !cmd.Bool("quiet") {
			fmt.Fprintln(w, "IMAGE\tID\tPLATFORM\tSIZE")
		}
		for _, img := range all {
			if cmd.Bool("quiet") {
				fmt.Fprintln(w, img.ID)
				continue
			}
			names := img.RepoTags
			if len(names) == 0 {
				names = img.RepoDigests
			}
			if len(names) == 0 {
				names = []string{"<none>"}
			}
			for _, name := range names {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", name, shortID(img.ID), platformText(img), size(uint64(img.Size)))
			}
		}
		return w.Flush()
	})
}

// platformText is what an image is for.
func platformText(img image.Summary) string {
	switch {
	case img.Artifact != nil:
		return "artifact"
	case img.Platform == "":
		return "-"
	}
	return img.Platform
}

func inspectImages(ctx context.Context, cmd *cli.Command) error {
	refs, err := someImages(cmd)
	if err != nil {
		return err
	}
	return withAdmin(cmd, func(c *cri.AdminClient) error {
		var all []image.Summary
		for _, ref := range refs {
			more, err := c.ImageInspect(ctx, ref)
			if err != nil {
				return err
			}
			all = append(all, more...)
		}
		return printJSON(cmd.Root().Writer, all)
	})
}

// size in the decimal units that registries and docker use.
func size(n uint64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f kB", float64(n)/1e3)
}

func pullImages(ctx context.Context, cmd *cli.Command) error {
	refs, err := someImages(cmd)
	if err != nil {
		return err
	}
	user, password, ok, err := userPassword(cmd)
	if err != nil {
		return err
	}
	names, all, err := platformsOf(cmd)
	if err != nil {
		return err
	}
	if all || len(names) > 0 {
		var auth *image.Auth
		if ok {
			auth = &image.Auth{Username: user, Password: password}
		}
		return pullPlatforms(ctx, cmd, refs, auth, image.PullOptions{Platforms: names, AllPlatforms: all})
	}
	var auth *pb.AuthConfig
	if ok {
		auth = &pb.AuthConfig{Username: user, Password: password}
	}
	return withImages(cmd, func(c pb.ImageServiceClient) error {
		for _, ref := range refs {
			done := showProgress(ctx, cmd, ref)
			resp, err := c.PullImage(ctx, &pb.PullImageRequest{Image: &pb.ImageSpec{Image: ref}, Auth: auth})
			done()
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.Root().Writer, resp.ImageRef)
		}
		return nil
	})
}

// pullPlatforms prints the IDs with the platforms that they are for. The CRI has no word for these.
func pullPlatforms(ctx context.Context, cmd *cli.Command, refs []string, auth *image.Auth, o image.PullOptions) error {
	return withAdmin(cmd, func(c *cri.AdminClient) error {
		for _, ref := range refs {
			done := showProgress(ctx, cmd, ref)
			imgs, err := c.ImagePull(ctx, ref, auth, o)
			done()
			if err != nil {
				return err
			}
			for _, img := range imgs {
				fmt.Fprintln(cmd.Root().Writer, img.ID, platformText(img))
			}
		}
		return nil
	})
}

func removeImages(ctx context.Context, cmd *cli.Command) error {
	refs, err := someImages(cmd)
	if err != nil {
		return err
	}
	return withImages(cmd, func(c pb.ImageServiceClient) error {
		for _, ref := range refs {
			if _, err := c.RemoveImage(ctx, &pb.RemoveImageRequest{Image: &pb.ImageSpec{Image: ref}}); err != nil {
				return err
			}
		}
		return nil
	})
}

func tagImage(ctx context.Context, cmd *cli.Command) error {
	if cmd.Args().Len() != 2 {
		return errors.New("image tag: name an image and its new name")
	}
	return withAdmin(cmd, func(c *cri.AdminClient) error {
		name, err := c.ImageTag(ctx, cmd.Args().Get(0), cmd.Args().Get(1), cmd.Bool("force"))
		if err == nil {
			fmt.Fprintln(cmd.Root().Writer, name)
		}
		return err
	})
}

func pinImages(pinned bool) cli.ActionFunc {
	return func(ctx context.Context, cmd *cli.Command) error {
		refs, err := someImages(cmd)
		if err != nil {
			return err
		}
		return withAdmin(cmd, func(c *cri.AdminClient) error {
			for _, ref := range refs {
				if err := c.ImagePin(ctx, ref, pinned); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// withAdmin calls f with a client of the daemon's administration service.
func withAdmin(cmd *cli.Command, f func(*cri.AdminClient) error) error {
	conn, err := connect(cmd)
	if err != nil {
		return err
	}
	defer conn.Close()
	return f(cri.NewAdminClient(conn))
}

func importImages(ctx context.Context, cmd *cli.Command) error {
	if cmd.Args().Len() != 1 {
		return errors.New("image import: name one archive, or - for standard input")
	}
	archive := cmd.Root().Reader
	if path := cmd.Args().First(); path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		archive = f
	}
	conn, err := connect(cmd)
	if err != nil {
		return err
	}
	defer conn.Close()
	names, err := cri.NewAdminClient(conn).Import(ctx, archive, image.ImportOptions{Pin: cmd.Bool("pin"), AllPlatforms: cmd.Bool("all-platforms")})
	for _, name := range names {
		fmt.Fprintln(cmd.Root().Writer, name)
	}
	return err
}

func exportImages(ctx context.Context, cmd *cli.Command) error {
	refs, err := someImages(cmd)
	if err != nil {
		return err
	}
	conn, err := connect(cmd)
	if err != nil {
		return err
	}
	defer conn.Close()
	names, all, err := platformsOf(cmd)
	if err != nil {
		return err
	}
	export := func(w io.Writer) error {
		return cri.NewAdminClient(conn).Export(ctx, w, refs, image.ExportOptions{Platforms: names, AllPlatforms: all})
	}
	path := cmd.String("output")
	if path == "-" {
		if isTerminal(cmd.Root().Writer) {
			return errors.New("image export: an archive does not belong on a terminal: use --output FILE or a pipe")
		}
		return export(cmd.Root().Writer)
	}
	return writeWhole(path, export)
}

// writeWhole writes a file that is complete or not there.
func writeWhole(path string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	err = errors.Join(write(f), f.Chmod(0o644), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0 && f.Name() != os.DevNull
}
