// Command critest runs critest against the daemon, with stand-ins for the images that the suite pulls. It changes
// the network and the cgroups around it: run.sh gives it namespaces of its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cri-shim/cri-shim/hack/registry"
	"github.com/cri-shim/cri-shim/internal/sys"
)

type options struct {
	work, daemon, plugins, debs, nonewprivs, known, excluded, report, handler, driver string
	suite                                                                             suite
}

func main() {
	var o options
	flag.StringVar(&o.work, "work", "", "empty folder for everything that is made; short, sockets are below it")
	flag.StringVar(&o.daemon, "cri-shim", "", "the daemon")
	flag.StringVar(&o.suite.program, "critest", "", "the suite")
	flag.StringVar(&o.plugins, "plugins", "", "folder of the CNI plugins")
	flag.StringVar(&o.debs, "debs", "", "folder of the Debian packages that images are made of")
	flag.StringVar(&o.nonewprivs, "nonewprivs", "", "the program of the image nonewprivs")
	flag.StringVar(&o.known, "known", "", "list of known failures")
	flag.StringVar(&o.excluded, "excluded", "", "list of specifications that cannot run")
	flag.StringVar(&o.report, "report", "", "where to write the summary")
	flag.StringVar(&o.handler, "handler", "", "program of an OCI runtime that runs the pods, as the handler of its name")
	flag.StringVar(&o.driver, "cgroup-driver", "", "who makes the control groups, as in the configuration")
	flag.StringVar(&o.suite.focus, "focus", "", "regular expression: only these specifications")
	flag.StringVar(&o.suite.skip, "skip", "", "regular expression: not these specifications")
	flag.StringVar(&o.suite.seed, "seed", "", "seed of the order")
	flag.IntVar(&o.suite.parallel, "parallel", 1, "specifications at a time")
	flag.DurationVar(&o.suite.timeout, "timeout", time.Hour, "for the whole suite")
	flag.Parse()
	ok, err := run(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "critest:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

func run(o options) (ok bool, err error) {
	known, err := readList(o.known)
	if err != nil {
		return false, err
	}
	if o.suite.excluded, err = readList(o.excluded); err != nil {
		return false, err
	}
	if err := sys.LoopbackUp(); err != nil {
		return false, err
	}
	images, err := registry.New(registry.Options{Root: filepath.Join(o.work, "registry")})
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, images.Close()) }()
	if err := (&imageBuilder{server: images, debs: o.debs, nonewprivs: o.nonewprivs}).all(); err != nil {
		return false, err
	}
	addr, err := images.Listen("127.0.0.1:0")
	if err != nil {
		return false, err
	}
	if err := mirrors(filepath.Join(o.work, "certs.d"), addr); err != nil {
		return false, err
	}
	if o.handler != "" {
		o.suite.handler = filepath.Base(o.handler)
	}
	n, err := startNode(&o)
	if err != nil {
		return false, err
	}
	o.suite.report = filepath.Join(o.work, "ginkgo.json")
	err = o.suite.run(context.Background(), n.socket())
	left, leftErr := n.leftovers()
	if err = errors.Join(err, leftErr, n.stop()); err != nil {
		return false, err
	}
	r, err := readReport(o.suite.report)
	if err != nil {
		return false, err
	}
	s := summarize(r, known, o.suite.excluded)
	s.Problems = append(s.Problems, left...)
	s.print(os.Stdout)
	return s.ok(), s.write(o.report)
}
