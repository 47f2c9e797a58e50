package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/cri"
	"github.com/cri-shim/cri-shim/image"
	"github.com/cri-shim/cri-shim/internal/version"
)

// Programs that bring images to a node call containerd's ctr there: kind, minikube, k3d, image builders. Called by that
// name, cri-shim understands what they ask for. Options that direct containerd's own workings (a snapshotter, whether
// to unpack) are taken and change nothing; what would change the result and cannot be done is an error.

// criNamespace is containerd's for images that pods can use. Those are all that there are here.
const criNamespace = "k8s.io"

const labelPinned = "io.cri-containerd.pinned"

func newCtrCommand() *cli.Command {
	root := &cli.Command{
		Name:  "ctr",
		Usage: "cri-shim's images, for programs that call containerd's ctr",
		Description: "What kind, minikube and the like call is here; cri-shim image does more.\n" +
			"The images are those of the namespace " + criNamespace + ", the kubelet's.",
		Version:        versionText(),
		ExitErrHandler: func(context.Context, *cli.Command, error) {},
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "address", Aliases: []string{"a"}, Usage: "`SOCKET` of the daemon", Sources: cli.EnvVars("CRI_SHIM_ENDPOINT"), Value: endpointDefault()},
			&cli.StringFlag{Name: "namespace", Aliases: []string{"n"}, Usage: "only " + criNamespace, Sources: cli.EnvVars("CONTAINERD_NAMESPACE")},
			&cli.DurationFlag{Name: "timeout", Usage: "of the whole command"},
			&cli.DurationFlag{Name: "connect-timeout", Usage: "changes nothing"},
			&cli.BoolFlag{Name: "debug", Usage: "changes nothing"},
		},
		Commands: []*cli.Command{
			ctrImages(),
			{
				Name:  "content",
				Usage: "content of images",
				Commands: []*cli.Command{
					{Name: "fetch", Usage: "pull an image", ArgsUsage: "IMAGE", Flags: ctrPullFlags(), Action: ctrDo(ctrPull)},
				},
			},
			{Name: "info", Usage: "tell that the daemon answers", Action: ctrDo(ctrVersion)},
			{Name: "version", Usage: "versions of the program and the daemon", Action: ctrDo(ctrVersion)},
		},
	}
	strict(root)
	return root
}

func ctrImages() *cli.Command {
	quiet := func() cli.Flag {
		return &cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print names only"}
	}
	return &cli.Command{
		Name: "images", Aliases: []string{"image", "i"},
		Usage: "import, list, check, tag, remove, pull and export images",
		Commands: []*cli.Command{
			{Name: "import", Usage: "import an archive and print the names in it", ArgsUsage: "FILE|-", Flags: ctrImportFlags(), Action: ctrDo(ctrImport)},
			{Name: "list", Aliases: []string{"ls"}, Usage: "list names of images", ArgsUsage: "[name==NAME|name~=PATTERN...]", Flags: []cli.Flag{quiet()}, Action: ctrDo(ctrList)},
			{Name: "check", Usage: "list images that are complete, as all are", ArgsUsage: "[name==NAME|name~=PATTERN...]",
				Flags: []cli.Flag{quiet(), ignored("snapshotter")}, Action: ctrDo(ctrCheck)},
			{Name: "tag", Usage: "give an image more names", ArgsUsage: "IMAGE NAME...",
				Flags: []cli.Flag{&cli.BoolFlag{Name: "force", Usage: "take the name from another image"}, ignoredBool("local"), ignoredBool("skip-reference-check")}, Action: ctrDo(ctrTag)},
			{Name: "remove", Aliases: []string{"rm", "delete", "del"}, Usage: "remove names, and images with their last name",
				ArgsUsage: "IMAGE...", Flags: []cli.Flag{ignoredBool("sync")}, Action: ctrDo(ctrRemove)},
			{Name: "pull", Usage: "pull an image", ArgsUsage: "IMAGE", Flags: ctrPullFlags(), Action: ctrDo(ctrPull)},
			{Name: "export", Usage: "write an archive of images", ArgsUsage: "FILE|- IMAGE...",
				Flags: []cli.Flag{platformFlag("export"), allPlatformsFlag("export all platforms that are here"), ignoredBool("local")}, Action: ctrDo(ctrExport)},
			{Name: "label", Usage: "pin an image with " + labelPinned + "=pinned, unpin it with an empty value", ArgsUsage: "IMAGE LABEL=VALUE...",
				Flags: []cli.Flag{ignoredBool("replace-all")}, Action: ctrDo(ctrLabel)},
		},
	}
}

// ignored and ignoredBool are options that need nothing to be done: the store does what is meant in any case, or has
// nothing of that kind.
func ignored(name string) cli.Flag {
	return &cli.StringSliceFlag{Name: name, Usage: "changes nothing"}
}

func ignoredBool(name string) cli.Flag {
	return &cli.BoolFlag{Name: name, Usage: "changes nothing"}
}

func ctrImportFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "digests", Usage: "name images by digest as well"},
		&cli.BoolFlag{Name: "skip-digest-for-named", Usage: "name by digest only what has no other name"},
		&cli.StringFlag{Name: "base-name", Usage: "`REPOSITORY` of images without one"},
		&cli.StringSliceFlag{Name: "label", Usage: labelPinned + "=pinned pins the images"},
		&cli.StringFlag{Name: "platform", Usage: "`PLATFORM` to choose"},
		allPlatformsFlag("import all platforms that are in the archive"), ignoredBool("no-unpack"), ignoredBool("local"), ignoredBool("sync-fs"),
		ignoredBool("compress-blobs"), ignoredBool("discard-unpacked-layers"), ignored("snapshotter"),
	}
}

func ctrPullFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "`USER:PASSWORD`"},
		platformFlag("pull"), allPlatformsFlag("pull all of the image's platforms"), ignored("snapshotter"), ignored("label"), ignoredBool("local"),
		ignoredBool("no-unpack"), ignoredBool("all-metadata"), ignoredBool("metadata-only"),
	}
}

func endpointDefault() string { return endpointFlag().(*cli.StringFlag).Value }

// ctrDo runs f after what goes for all commands.
func ctrDo(f func(context.Context, *ctrCall) error) cli.ActionFunc {
	return func(ctx context.Context, cmd *cli.Command) error {
		ofImages := cmd.Name != "version" && cmd.Name != "info"
		if n := cmd.String("namespace"); ofImages && n != criNamespace {
			if n == "" {
				n = "default"
			}
			return fmt.Errorf("namespace %q: there is only the kubelet's here: ctr --namespace=%s", n, criNamespace)
		}
		if d := cmd.Duration("timeout"); d > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, d)
			defer cancel()
		}
		conn, err := connectTo(cmd.String("address"))
		if err != nil {
			return err
		}
		defer conn.Close()
		return f(ctx, &ctrCall{
			Command: cmd, admin: cri.NewAdminClient(conn), images: pb.NewImageServiceClient(conn),
			runtime: pb.NewRuntimeServiceClient(conn), out: cmd.Root().Writer,
		})
	}
}

// ctrCall is one call of the program.
type ctrCall struct {
	*cli.Command
	admin   *cri.AdminClient
	images  pb.ImageServiceClient
	runtime pb.RuntimeServiceClient
	out     io.Writer
}

// some are the arguments, at least n.
func (c *ctrCall) some(n int) ([]string, error) {
	if c.Args().Len() < n {
		return nil, fmt.Errorf("ctr images %s: want %s", c.Name, c.ArgsUsage)
	}
	return c.Args().Slice(), nil
}

// one is the only argument.
func (c *ctrCall) one() (string, error) {
	if c.Args().Len() != 1 {
		return "", fmt.Errorf("ctr images %s: want %s", c.Name, c.ArgsUsage)
	}
	return c.Args().First(), nil
}

func ctrVersion(ctx context.Context, c *ctrCall) error {
	v, err := c.runtime.Version(ctx, &pb.VersionRequest{})
	if err != nil {
		return err
	}
	fmt.Fprintf(c.out, "Client:\n  Version:  %s\n\nServer:\n  Version:  %s\n", version.Version(), v.RuntimeVersion)
	return nil
}

func ctrImport(ctx context.Context, c *ctrCall) error {
	path, err := c.one()
	if err != nil {
		return err
	}
	o, err := c.importOptions(time.Now())
	if err != nil {
		return err
	}
	archive := c.Root().Reader
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		archive = f
	}
	names, err := c.admin.Import(ctx, archive, o)
	for _, n := range names {
		fmt.Fprintf(c.out, "%s\tsaved\n", n)
	}
	return err
}

func (c *ctrCall) importOptions(now time.Time) (image.ImportOptions, error) {
	o := image.ImportOptions{Digests: c.Bool("digests"), AllPlatforms: c.Bool("all-platforms"), Repository: c.String("base-name"), SkipNamed: c.Bool("skip-digest-for-named")}
	if o.Unnamed = o.Repository; o.Unnamed == "" {
		o.Unnamed = "import-" + now.Format(time.DateOnly) // as ctr has it
	}
	for _, l := range c.StringSlice("label") {
		if l != labelPinned+"=pinned" {
			return o, fmt.Errorf("ctr images import: --label %s: only %s=pinned means anything here", l, labelPinned)
		}
		o.Pin = true
	}
	if p := c.String("platform"); p != "" {
		o.PlatformName = p
	}
	return o, nil
}

func ctrTag(ctx context.Context, c *ctrCall) error {
	names, err := c.some(2)
	if err != nil {
		return err
	}
	for _, name := range names[1:] {
		got, err := c.admin.ImageTag(ctx, names[0], name, c.Bool("force"))
		if err != nil {
			return err
		}
		fmt.Fprintln(c.out, got)
	}
	return nil
}

func ctrRemove(ctx context.Context, c *ctrCall) error {
	names, err := c.some(1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := c.admin.ImageRemove(ctx, name); err != nil {
			return err
		}
		fmt.Fprintln(c.out, name)
	}
	return nil
}

func ctrPull(ctx context.Context, c *ctrCall) error {
	ref, err := c.one()
	if err != nil {
		return err
	}
	names, all, err := platformsOf(c.Command)
	if err != nil {
		return err
	}
	req := &pb.PullImageRequest{Image: &pb.ImageSpec{Image: ref}}
	if creds := c.String("user"); creds != "" {
		user, password, ok := strings.Cut(creds, ":")
		if !ok {
			return errors.New("ctr images pull: --user: want USER:PASSWORD")
		}
		req.Auth = &pb.AuthConfig{Username: user, Password: password}
	}
	if all || len(names) > 0 {
		var auth *image.Auth
		if req.Auth != nil {
			auth = &image.Auth{Username: req.Auth.Username, Password: req.Auth.Password}
		}
		imgs, err := c.admin.ImagePull(ctx, ref, auth, image.PullOptions{Platforms: names, AllPlatforms: all})
		for _, img := range imgs {
			fmt.Fprintf(c.out, "%s\t%s\t%s\n", ref, img.ID, platformText(img))
		}
		return err
	}
	resp, err := c.images.PullImage(ctx, req)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.out, "%s\t%s\n", ref, resp.ImageRef)
	return nil
}

func ctrExport(ctx context.Context, c *ctrCall) error {
	args, err := c.some(2)
	if err != nil {
		return err
	}
	names, all, err := platformsOf(c.Command)
	if err != nil {
		return err
	}
	export := func(w io.Writer) error {
		return c.admin.Export(ctx, w, args[1:], image.ExportOptions{Platforms: names, AllPlatforms: all})
	}
	if args[0] == "-" {
		return export(c.out)
	}
	return writeWhole(args[0], export)
}

func ctrLabel(ctx context.Context, c *ctrCall) error {
	args, err := c.some(2)
	if err != nil {
		return err
	}
	for _, l := range args[1:] {
		name, value, _ := strings.Cut(l, "=")
		if name != labelPinned || value != "" && value != "pinned" {
			return fmt.Errorf("ctr images label: %s: only %s=pinned means anything here", l, labelPinned)
		}
		if err := c.admin.ImagePin(ctx, args[0], value == "pinned"); err != nil {
			return err
		}
	}
	return nil
}

// ctrRow is one name of an image: containerd has an image for each.
type ctrRow struct {
	name, digest string
	img          *pb.Image
}

// rows are the names that fit the command's filters, as containerd has them: tags, digests and IDs.
func (c *ctrCall) rows(ctx context.Context) ([]ctrRow, error) {
	fits, err := ctrFilter(c.Args().Slice())
	if err != nil {
		return nil, err
	}
	resp, err := c.images.ListImages(ctx, &pb.ListImagesRequest{})
	if err != nil {
		return nil, err
	}
	var rows []ctrRow
	for _, img := range resp.Images {
		digest := img.Id
		for _, d := range img.RepoDigests {
			_, digest, _ = strings.Cut(d, "@")
		}
		for _, name := range slices.Concat(img.RepoTags, img.RepoDigests, []string{img.Id}) {
			if fits(name) {
				rows = append(rows, ctrRow{name, digest, img})
			}
		}
	}
	slices.SortFunc(rows, func(a, b ctrRow) int { return strings.Compare(a.name, b.name) })
	return rows, nil
}

// ctrFilter understands of containerd's filters what is said of names; one that fits is enough.
func ctrFilter(filters []string) (func(name string) bool, error) {
	if len(filters) == 0 {
		return func(string) bool { return true }, nil
	}
	var patterns []*regexp.Regexp
	for _, f := range filters {
		text, ok := strings.CutPrefix(f, "name==")
		pattern := "^" + regexp.QuoteMeta(unquoted(text)) + "$"
		if !ok {
			text, ok = strings.CutPrefix(f, "name~=")
			pattern = unquoted(text)
		}
		if !ok {
			return nil, fmt.Errorf("ctr images: filter %q: want name==NAME or name~=PATTERN", f)
		}
		p, err := regexp.Compile(pattern)
		if err != nil {
			return nil, fmt.Errorf("ctr images: filter %q: %w", f, err)
		}
		patterns = append(patterns, p)
	}
	return func(name string) bool {
		return slices.ContainsFunc(patterns, func(p *regexp.Regexp) bool { return p.MatchString(name) })
	}, nil
}

// unquoted is a filter's value without the quotation marks that it may have.
func unquoted(s string) string {
	if len(s) > 1 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		return s[1 : len(s)-1]
	}
	return s
}

func ctrList(ctx context.Context, c *ctrCall) error {
	all, err := c.admin.ImageList(ctx)
	if err != nil {
		return err
	}
	platforms := map[string][]string{} // by name
	for _, img := range all {
		for _, name := range slices.Concat(img.RepoTags, img.RepoDigests, []string{img.ID}) {
			platforms[name] = append(platforms[name], platformText(img))
		}
	}
	return c.table(ctx, "REF\tTYPE\tDIGEST\tSIZE\tPLATFORMS\tLABELS\t", func(r ctrRow) string {
		labels := "io.cri-containerd.image=managed"
		if r.img.Pinned {
			labels += "," + labelPinned + "=pinned"
		}
		// The ID is what programs look for to know whether the image is the one that they have.
		return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s,id=%s\t", r.name, ctrMediaType, r.digest, size(r.img.Size), strings.Join(platforms[r.name], ","), labels, r.img.Id)
	})
}

const ctrMediaType = "application/vnd.oci.image.manifest.v1+json"

func ctrCheck(ctx context.Context, c *ctrCall) error {
	return c.table(ctx, "REF\tTYPE\tDIGEST\tSTATUS\tSIZE\tUNPACKED\t", func(r ctrRow) string {
		return fmt.Sprintf("%s\t%s\t%s\tcomplete\t%s\ttrue\t", r.name, ctrMediaType, r.digest, size(r.img.Size))
	})
}

func (c *ctrCall) table(ctx context.Context, head string, line func(ctrRow) string) error {
	rows, err := c.rows(ctx)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(c.out, 0, 0, 1, ' ', 0)
	if !c.Bool("quiet") {
		fmt.Fprintln(w, head)
	}
	for _, r := range rows {
		if c.Bool("quiet") {
			fmt.Fprintln(w, r.name)
			continue
		}
		fmt.Fprintln(w, line(r))
	}
	return w.Flush()
}

// newContainerdCommand answers the two questions that such programs ask containerd itself.
func newContainerdCommand() *cli.Command {
	root := &cli.Command{
		Name:  "containerd",
		Usage: "answers of cri-shim for programs that look for containerd",
		Description: "kind asks for the snapshotter before it loads an image. The daemon is cri-shim serve; this starts\n" +
			"nothing.",
		Version:        versionText(),
		ExitErrHandler: func(context.Context, *cli.Command, error) {},
		Commands: []*cli.Command{{
			Name:  "config",
			Usage: "configuration",
			Commands: []*cli.Command{{
				Name:  "dump",
				Usage: "print what programs look for in containerd's configuration",
				Action: func(_ context.Context, cmd *cli.Command) error {
					_, err := fmt.Fprint(cmd.Root().Writer, "version = 3\n\n[plugins]\n  [plugins.'io.containerd.cri.v1.images']\n    snapshotter = 'overlayfs'\n")
					return err
				},
			}},
		}},
	}
	strict(root)
	return root
}
