package app

import (
	"context"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"

	"waybill/cmd/internal/config"
	"waybill/metrics"
	"waybill/relay/auth"
)

// watchInterval is how often we look at what others change beside us. A look
// costs a few stats; the reference promises a minute.
const watchInterval = 10 * time.Second

// watch keeps up with certificates, the user file and the room on the volumes
// until ctx is done. (The queue watches its own volume.)
func (a *App) watch(ctx context.Context) error {
	tick := time.NewTicker(a.every)
	defer tick.Stop()
	said, saidKeytab := "", ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		a.volumes.look()
		in := a.reception.Load()
		_, _ = in.certs.Reload() // states itself how it went
		if in.users != nil {
			said = a.watchUsers(in.users, said)
		}
		saidKeytab = a.watchKeytab(in.others, saidKeytab)
	}
}

// watchTokens keeps the keys of token issuers fresh until ctx is done. It is not
// part of watch because it waits for others.
func (a *App) watchTokens(ctx context.Context) error {
	tick := time.NewTicker(a.every)
	defer tick.Stop()
	for {
		if v := a.reception.Load().tokens; v != nil {
			v.Refresh(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// watchUsers reads the user file when it has changed. What is wrong with it is
// said once; said is what has been said already.
func (a *App) watchUsers(users *auth.Users, said string) string {
	log := a.logger.Named("users")
	changed, err := users.Reload()
	switch {
	case err == nil:
		if changed {
			log.Info("user file read again", zap.Int("users", len(users.List())))
		}
		return ""
	case err.Error() != said:
		log.Warn("user file cannot be read; the users stay as they were", zap.Error(err))
	}
	return err.Error()
}

// volumes knows how much room there is where the tracking store and the log
// are. It looks now and then, so that a scrape asks memory and never a disk.
type volumes struct {
	dirs [][2]string // what it is for, and a folder on it

	mu  sync.Mutex
	now []metrics.Disk
}

// open names the volumes, and looks for the first time.
func (v *volumes) open(c *config.Config) {
	if c.Tracking.Engine != "off" {
		v.dirs = append(v.dirs, [2]string{"tracking", filepath.Join(c.DataDir, "track")})
	}
	if c.Log.File != "" {
		v.dirs = append(v.dirs, [2]string{"log", filepath.Dir(c.Log.File)})
	}
	v.look()
}

// look asks the file systems.
func (v *volumes) look() {
	var now []metrics.Disk
	for _, d := range v.dirs {
		free, size, err := space(d[1])
		if err != nil || size == 0 {
			continue // not known is not exposed
		}
		now = append(now, metrics.Disk{Volume: d[0], Free: free, Size: size})
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.now = now
}

func (v *volumes) disks() []metrics.Disk {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.now
}
