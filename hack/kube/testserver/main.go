// Command testserver is what the pods of the kubelet's and the cluster's tests run: it answers HTTP, TCP and gRPC
// health probes until it is told not to, and says how it sees itself.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "testserver:", err)
		os.Exit(1)
	}
}

func run() error {
	addr := flag.String("http", ":8080", "address of /, /healthz, /fail, /env?name=, /file?path=")
	grpcAddr := flag.String("grpc", "", "address of a gRPC health service")
	flag.Parse()
	status := health.NewServer()
	ended := make(chan error, 2)
	if *grpcAddr != "" {
		l, err := net.Listen("tcp", *grpcAddr)
		if err != nil {
			return err
		}
		s := grpc.NewServer()
		healthpb.RegisterHealthServer(s, status)
		go func() { ended <- s.Serve(l) }()
	}
	go func() { ended <- http.ListenAndServe(*addr, handler(status)) }()
	fmt.Println("serving")
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		fmt.Println("terminated")
		return nil
	}
}

func handler(status *health.Server) http.Handler {
	var failing atomic.Bool
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		host, _ := os.Hostname()
		fmt.Fprintf(w, "%s %s\n", host, r.URL.Path)
	})
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if failing.Load() {
			http.Error(w, "told to fail", http.StatusInternalServerError)
		}
	})
	mux.HandleFunc("/fail", func(http.ResponseWriter, *http.Request) {
		failing.Store(true)
		status.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	})
	mux.HandleFunc("/env", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, os.Getenv(r.FormValue("name"))) })
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		b, err := os.ReadFile(r.FormValue("path"))
		if errors.Is(err, os.ErrNotExist) {
			http.NotFound(w, r)
			return
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Write(b)
	})
	return mux
}
