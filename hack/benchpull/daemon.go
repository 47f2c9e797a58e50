package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// daemon is a container runtime that was started to pull. A nil one is none.
type daemon struct {
	name   string
	cmd    *exec.Cmd
	ended  chan struct{}
	log    string
	conn   *grpc.ClientConn
	images pb.ImageServiceClient
}

const (
	daemonStart = 30 * time.Second
	daemonStop  = 15 * time.Second
)

// startDaemon returns when the image service on dir/run/sock answers. The error has the end of the daemon's log.
func startDaemon(ctx context.Context, name string, argv []string, dir string) (*daemon, error) {
	d := &daemon{name: name, ended: make(chan struct{}), log: filepath.Join(dir, "run", "log")}
	log, err := os.Create(d.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	d.cmd = exec.Command(argv[0], argv[1:]...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interruption is ours to handle
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = d.cmd.Wait() // ProcessState tells
		close(d.ended)
	}()
	d.conn, err = grpc.NewClient("unix:"+filepath.Join(dir, "run", "sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err == nil {
		d.images = pb.NewImageServiceClient(d.conn)
		err = d.ready(ctx)
	}
	if err != nil {
		d.stop()
		return nil, d.explain(err)
	}
	return d, nil
}

// ready waits for the image service.
func (d *daemon) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, daemonStart)
	defer cancel()
	for {
		_, err := d.images.ImageFsInfo(ctx, &pb.ImageFsInfoRequest{})
		switch {
		case err == nil:
			return nil
		case status.Code(err) == codes.Unimplemented:
			return fmt.Errorf("its socket has no CRI image service: %w", err)
		}
		select {
		case <-d.ended:
			return fmt.Errorf("ended before it answered: %s", d.cmd.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("its image service does not answer: %w (%w)", context.Cause(ctx), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (d *daemon) pid() int {
	if d == nil {
		return 0
	}
	return d.cmd.Process.Pid
}

func (d *daemon) stop() {
	if d == nil {
		return
	}
	if d.conn != nil {
		d.conn.Close()
	}
	for _, s := range []os.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		_ = d.cmd.Process.Signal(s) // it may have ended
		select {
		case <-d.ended:
			return
		case <-time.After(daemonStop):
		}
	}
}

// explain adds what the daemon's log says.
func (d *daemon) explain(err error) error {
	if d == nil {
		return err
	}
	text, rerr := os.ReadFile(d.log)
	if rerr != nil {
		return errors.Join(err, rerr)
	}
	return fmt.Errorf("%s: %w; its log:\n%s", d.name, err, gist(string(text)))
}

// gist is the end of a log, after the lines before it that complain.
func gist(log string) string {
	const last, width = 15, 400
	lines := strings.Split(strings.TrimSpace(log), "\n")
	from := max(0, len(lines)-last)
	complaints := slices.DeleteFunc(slices.Clone(lines[:from]), func(l string) bool {
		l = strings.ToLower(l)
		return !strings.Contains(l, "level=error") && !strings.Contains(l, "level=fatal") && !strings.Contains(l, "error=")
	})
	all := append(complaints, lines[from:]...)
	for i, l := range all {
		all[i] = "  " + l[:min(len(l), width)]
	}
	return strings.Join(all, "\n")
}
