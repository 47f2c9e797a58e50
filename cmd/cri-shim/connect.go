package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cri-shim/cri-shim/internal/config"
)

func endpointFlag() cli.Flag {
	return &cli.StringFlag{
		Name:    "endpoint",
		Aliases: []string{"e"},
		Usage:   "`SOCKET` of the daemon, with or without unix://",
		Value:   "unix://" + config.Default().Listen,
		Sources: cli.EnvVars("CRI_SHIM_ENDPOINT"),
	}
}

// connect returns a connection to the daemon. gRPC would report a socket that is not there
// only with the first call, and at length.
func connect(cmd *cli.Command) (*grpc.ClientConn, error) { return connectTo(cmd.String("endpoint")) }

func connectTo(endpoint string) (*grpc.ClientConn, error) {
	path := strings.TrimPrefix(endpoint, "unix://")
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("--endpoint: %q is no socket's absolute path, with or without unix://", endpoint)
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no daemon at %s: is cri-shim serve running? (--endpoint names another socket)", path)
	} else if err != nil {
		return nil, fmt.Errorf("endpoint: %w", err)
	}
	return grpc.NewClient("unix:"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)))
}
