// Command cluster runs a Kubernetes of one node on cri-shim until it is ended. It opens the socket by which the machine
// reaches the API server, and then executes itself by way of isolate.sh and inside.sh: a socket belongs to the network
// namespace that it was made in, whoever holds it. cluster.sh calls it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/hack/kube/cluster"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run() error {
	dir := flag.String("dir", "", "folder of all that the cluster writes")
	listen := flag.String("listen", "127.0.0.1:0", "address for the API server, in this network namespace")
	socket := flag.Int("socket", -1, "descriptor of the socket that listens; for the program itself")
	flag.Parse()
	if *socket < 0 {
		if flag.NArg() != 2 {
			return errors.New("usage: cluster -dir DIR [-listen ADDRESS] ISOLATE.SH INSIDE.SH")
		}
		return enter(*dir, *listen, flag.Arg(0), flag.Arg(1))
	}
	l, err := net.FileListener(os.NewFile(uintptr(*socket), "listener"))
	if err != nil {
		return err
	}
	c, err := cluster.Start(*dir, l.Addr().String())
	if err != nil {
		return err
	}
	go forward(l)
	if err := os.WriteFile(filepath.Join(*dir, "ready"), nil, 0o600); err != nil {
		return errors.Join(err, c.Stop())
	}
	return watch(c)
}

// enter does not return: the program goes on inside.
func enter(dir, listen, isolate, inside string) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	fd, err := syscall.Dup(int(f.Fd())) // without close-on-exec
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, p := range []*string{&isolate, &inside} {
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	return syscall.Exec(isolate, []string{isolate, inside, dir, self, "-dir", dir, "-socket", strconv.Itoa(fd)}, os.Environ())
}

// watch returns when the cluster is to end, or when a part of it has.
func watch(c *cluster.Cluster) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return c.Stop()
		case <-tick.C:
			if err := c.Err(); err != nil {
				return errors.Join(err, c.Stop())
			}
		}
	}
}

// forward joins each connection to one to the API server.
func forward(l net.Listener) {
	for {
		from, err := l.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "cluster: accept:", err)
			time.Sleep(time.Second)
			continue
		}
		go func() {
			defer from.Close()
			to, err := net.Dial("tcp", cluster.Address)
			if err != nil {
				fmt.Fprintln(os.Stderr, "cluster: forward:", err)
				return
			}
			defer to.Close()
			go half(to.(*net.TCPConn), from.(*net.TCPConn))
			half(from.(*net.TCPConn), to.(*net.TCPConn))
		}()
	}
}

// half copies to the end and tells the other side of it.
func half(to, from *net.TCPConn) {
	io.Copy(to, from)
	to.CloseWrite()
}
