package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/cri-shim/cri-shim/cri"
)

// notifyReady tells systemd that the daemon serves and, if it asks for it, goes on telling it
// that the daemon is alive (sd_notify(3), sd_watchdog_enabled(3)). Alive means that its records
// can be read: a lock that nobody gives back ends in a restart. The result ends that.
func notifyReady(ctx context.Context, r cri.Runtime, log *slog.Logger) func() {
	notify(log, daemon.SdNotifyReady)
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("watchdog", "err", err)
	}
	if err != nil || every == 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		tick := time.NewTicker(every / 2)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				r.Pods()
				notify(log, daemon.SdNotifyWatchdog)
			}
		}
	}()
	return cancel
}

func notifyStopping(log *slog.Logger) { notify(log, daemon.SdNotifyStopping) }

// notify does nothing where systemd did not start the daemon.
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("notify systemd", "state", state, "err", err)
	}
}
