package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
)

// logger writes lines as runc's callers read them: containerd's library takes the last error of a JSON log.
type logger struct {
	text  io.Writer
	json  bool
	debug bool
	file  bool // text is not standard error
}

func (l *logger) open(path, format string, debug bool) error {
	switch format {
	case "text":
	case "json":
		l.json = true
	default:
		return fmt.Errorf("invalid log-format: %q", format)
	}
	l.debug = debug
	if path == "" || path == "/dev/stderr" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|os.O_SYNC, 0o644)
	if err != nil {
		return err
	}
	l.text, l.file = f, true
	return nil
}

func (l *logger) print(level, msg string) {
	at := time.Now().Format(time.RFC3339)
	if !l.json {
		fmt.Fprintf(l.text, "time=%q level=%s msg=%s\n", at, level, strconv.Quote(msg))
		return
	}
	line, err := json.Marshal(struct {
		Level string `json:"level"`
		Msg   string `json:"msg"`
		Time  string `json:"time"`
	}{level, msg, at})
	if err == nil {
		l.text.Write(append(line, '\n'))
	}
}

// fatal tells why the program ends; beside a log file, on standard error too.
func (l *logger) fatal(err error) {
	l.print("error", err.Error())
	if l.file {
		fmt.Fprintln(os.Stderr, err)
	}
}
