package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cri-shim/cri-shim/image"
)

// AdminClient calls the administration service.
type AdminClient struct{ conn grpc.ClientConnInterface }

// NewAdminClient returns a client on a connection to the daemon.
func NewAdminClient(conn grpc.ClientConnInterface) *AdminClient { return &AdminClient{conn} }

// Timelines returns those of one pod or container, named by an ID or the beginning of one,
// or with "" those of all pods.
func (c *AdminClient) Timelines(ctx context.Context, id string) ([]Timeline, error) {
	out := new(wrapperspb.BytesValue)
	if err := c.conn.Invoke(ctx, adminTimeline, &wrapperspb.BytesValue{Value: []byte(id)}, out); err != nil {
		return nil, err
	}
	var timelines []Timeline
	if err := json.Unmarshal(out.GetValue(), &timelines); err != nil {
		return nil, fmt.Errorf("timelines: %w", err)
	}
	return timelines, nil
}

// Metrics are those of the daemon, in Prometheus' text format.
func (c *AdminClient) Metrics(ctx context.Context) ([]byte, error) {
	out := new(wrapperspb.BytesValue)
	if err := c.conn.Invoke(ctx, adminMetrics, &wrapperspb.BytesValue{}, out); err != nil {
		return nil, err
	}
	return out.GetValue(), nil
}

// Import sends an archive, an OCI layout or docker's, and returns the names of its images.
func (c *AdminClient) Import(ctx context.Context, archive io.Reader, o image.ImportOptions) ([]string, error) {
	options, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	ctx = metadata.AppendToOutgoingContext(ctx, importOptionsKey, string(options))
	// A stream is freed only when it ends or its context does.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.conn.NewStream(ctx, &adminDesc.Streams[0], adminImportImages)
	if err != nil {
		return nil, err
	}
	w := &chunkWriter{send: stream.SendMsg}
	_, err = io.CopyBuffer(struct{ io.Writer }{w}, archive, make([]byte, 64<<10))
	if err == nil {
		err = w.flush()
	}
	// io.EOF says that the daemon has ended the call; why, RecvMsg will tell.
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	out := new(wrapperspb.BytesValue)
	if err := stream.RecvMsg(out); err != nil {
		return nil, err
	}
	var names []string
	if err := json.Unmarshal(out.GetValue(), &names); err != nil {
		return nil, fmt.Errorf("names of imported images: %w", err)
	}
	return names, nil
}

// Export writes images as an archive.
func (c *AdminClient) Export(ctx context.Context, archive io.Writer, refs []string, o image.ExportOptions) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.conn.NewStream(ctx, &adminDesc.Streams[1], adminExportImages)
	if err != nil {
		return err
	}
	var req any = refs // as daemons of before understand it
	if o.AllPlatforms || len(o.Platforms) > 0 {
		req = exportRequest{refs, o}
	}
	text, err := json.Marshal(req)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(&wrapperspb.BytesValue{Value: text}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	_, err = io.Copy(archive, &chunkReader{recv: stream.RecvMsg})
	return err
}
