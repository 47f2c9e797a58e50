package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/cri-shim/cri-shim/cri"
	"github.com/cri-shim/cri-shim/image"
)

func explainImage(ctx context.Context, cmd *cli.Command) error {
	if cmd.Args().Len() != 1 {
		return errors.New("image why: name one image")
	}
	user, password, _, err := userPassword(cmd)
	if err != nil {
		return err
	}
	conn, err := connect(cmd)
	if err != nil {
		return err
	}
	defer conn.Close()
	e, err := cri.NewAdminClient(conn).ImageWhy(ctx, cmd.Args().First(), cri.Credentials{Username: user, Password: password})
	if err != nil {
		return err
	}
	if cmd.Bool("json") {
		enc := json.NewEncoder(cmd.Root().Writer)
		enc.SetIndent("", "  ")
		return enc.Encode(e)
	}
	printExplanation(cmd.Root().Writer, e)
	return nil
}

func printExplanation(w io.Writer, e *image.Explanation) {
	or := func(s, otherwise string) string {
		if s == "" {
			return otherwise
		}
		return s
	}
	fmt.Fprintf(w, "reference   %s\n", e.Reference)
	fmt.Fprintf(w, "registry    %s\n", or(e.Config, "not configured: the registry itself, by HTTPS"))
	fmt.Fprintf(w, "present     %s\n", or(e.Present, "no"))
	for i, h := range e.Hosts {
		fmt.Fprintf(w, "\nhost %d      %s\n", i+1, h.URL)
		fmt.Fprintf(w, "  may       %s\n", or(strings.Join(h.Capabilities, ", "), "nothing"))
		if h.Proxy != "" {
			fmt.Fprintf(w, "  proxy     %s\n", h.Proxy)
		}
		fmt.Fprintf(w, "  as        %s\n", h.Credential)
		fmt.Fprintf(w, "  answer    %s (%v)\n", or(h.Digest, h.Error), h.Took.Round(time.Millisecond))
	}
	for _, p := range e.Problems {
		fmt.Fprintf(w, "\nproblem     %s\n", p)
	}
	if e.Digest == "" {
		fmt.Fprintln(w, "\nresult      no host has an answer: a pull would fail")
		return
	}
	fmt.Fprintf(w, "\nresult      %s of %s\n", e.Digest, e.From)
}
