package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// Locks by name over processes. First one that nobody else wants: locked and unlocked over and over. Then one that 32 callers of four processes want at
// once, each of whom has it for two milliseconds: how many get it a second, how long it lies idle between two of them, who waits longest, and
// what Redis is sent for each. A lock that two have at a time ends the run.
//
// The budgets are ours and hold for the Mutex as it comes: the hand-over of docs/locks.md, about a millisecond; everybody's turn within three rounds of
// all callers; what is sent grows with processes, not with callers.
//
// What misleads: all processes are in one, four instances with a client each; who polls with a shorter pause is quicker and sends more. The wait of
// those who did not get the lock before a round ended counts up to there.

const (
	lockCallers = 8 // of each of the fleetSize processes
	lockHold    = 2 * time.Millisecond
)

func locks(ctx context.Context, e *env) (_ []Row, err error) {
	all := lockers()
	fleets := make([]*lockFleet, len(all))
	for i, l := range all {
		if fleets[i], err = openLockFleet(l, e.server.addr); err != nil {
			return nil, fmt.Errorf("%s: %w", l.name, err)
		}
		defer func() { err = errors.Join(err, fleets[i].close()) }()
	}
	rows, err := freeLock(ctx, e, all, fleets)
	if err != nil {
		return nil, err
	}
	wanted, err := wantedLock(ctx, e, all, fleets)
	return append(rows, wanted...), err
}

// freeLock measures a lock that nobody else wants.
func freeLock(ctx context.Context, e *env, all []locker, fleets []*lockFleet) ([]Row, error) {
	var failed error
	subjects := make([]subject, len(all))
	for i, l := range all {
		member := fleets[i].members[0]
		subjects[i] = subject{l.name, func(_, n int) {
			for range n {
				unlock, err := member.lock(ctx, "free of "+l.name)
				if err == nil {
					err = unlock(ctx)
				}
				failed = errors.Join(failed, err)
			}
		}}
	}
	measured, err := interleave(ctx, e.plan(1, 1), subjects...)
	if err := errors.Join(err, failed); err != nil {
		return nil, err
	}
	var rows []Row
	yardstick := measured[2] // redislock: a SET and a script, which is the least that a lock can be
	for i, l := range all {
		detail := fmt.Sprintf("%.0f us; %s", median(measured[i].ns)/1e3, l.setup)
		rows = append(rows, ratioRow("free lock, "+l.name+": × redislock", over(measured[i], yardstick), budget{}, detail))
	}
	return rows, nil
}

// wantedLock measures a lock that everybody wants, in rounds of every subject in turn.
func wantedLock(ctx context.Context, e *env, all []locker, fleets []*lockFleet) ([]Row, error) {
	rounds, lasts := pick(e, 5, 1), pick(e, 2*time.Second, 200*time.Millisecond)
	grants, idle, longest, commands := make([][]float64, len(all)), make([][]float64, len(all)), make([][]float64, len(all)), make([][]float64, len(all))
	for round := range rounds {
		for turn := range all {
			i := (turn + round) % len(all)
			c, err := fleets[i].contend(ctx, fmt.Sprintf("wanted %d of %s", round, all[i].name), lasts)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", all[i].name, err)
			}
			n := float64(max(len(c.idle), 1))
			grants[i] = append(grants[i], n/lasts.Seconds())
			idle[i] = append(idle[i], median(c.idle))
			longest[i] = append(longest[i], c.longest)
			commands[i] = append(commands[i], float64(c.trips)/n)
		}
	}
	var rows []Row
	for i, l := range all {
		named := func(what string, values []float64, unit string, most float64, detail string) Row {
			r := Row{What: "wanted lock, " + l.name + ": " + what, Value: median(values), Unit: unit, Low: slices.Min(values), High: slices.Max(values), Detail: detail, Rounds: values}
			if i == 0 && most > 0 {
				r.Budget = atMost(most)
			}
			return r
		}
		turn := lockHold.Seconds() * 1e3 * fleetSize * lockCallers // ms until all had it once
		rows = append(rows,
			named("grants a second", grants[i], "", 0, fmt.Sprintf("%.0f would be without a pause between them; %s", 1/lockHold.Seconds(), l.setup)),
			named("idle between two grants, median", idle[i], "ms", 1, ""),
			named("longest wait", longest[i], "ms", 3*turn, fmt.Sprintf("of rounds of %v", lasts)),
			named("sent for a grant", commands[i], "", fleetSize+1, "commands and pipelines of all processes that name it"))
		for _, picture := range []struct {
			what, unit string
			values     []float64
		}{
			{"grants of a lock that 32 callers want", "a second (log)", grants[i]},
			{"longest wait for a lock that 32 callers want", "ms (log)", longest[i]},
			{"what is sent for a grant of a lock that 32 callers want", "commands and pipelines (log)", commands[i]},
		} {
			bar := Series{Subject: l.name, What: picture.what, Unit: picture.unit, Log: true}
			bar.add(0, median(picture.values))
			e.plot(bar)
		}
	}
	return rows, nil
}

// lockFleet is a locker in fleetSize processes.
type lockFleet struct {
	members []*openLocker
	clients []*redis.Client
	trips   *tripCounter
}

func openLockFleet(l locker, addr string) (*lockFleet, error) {
	f := &lockFleet{trips: &tripCounter{needle: "wanted "}}
	for range fleetSize {
		rdb := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true})
		rdb.AddHook(f.trips)
		f.clients = append(f.clients, rdb)
		m, err := l.open(rdb)
		if err != nil {
			return nil, errors.Join(err, f.close())
		}
		f.members = append(f.members, m)
	}
	return f, nil
}

func (f *lockFleet) close() error {
	var errs []error
	for _, m := range f.members {
		errs = append(errs, m.close())
	}
	for _, rdb := range f.clients {
		errs = append(errs, rdb.Close())
	}
	return errors.Join(errs...)
}

// contention is what became of one round.
type contention struct {
	idle    []float64 // ms from the call of Unlock to the next holder, for each grant but the first
	longest float64   // ms that somebody waited
	trips   int64
}

var errTwoHolders = errors.New("two have the lock at a time")

// contend has all callers of all members lock and unlock name, one after the other, for so long.
func (f *lockFleet) contend(ctx context.Context, name string, lasts time.Duration) (contention, error) {
	round, cancel := context.WithTimeout(ctx, lasts)
	defer cancel()
	var (
		c        contention
		mu       sync.Mutex // guards c, errs and released
		errs     []error
		released time.Time
		holders  atomic.Int32
		done     sync.WaitGroup
	)
	before := f.trips.n.Load()
	for n := range fleetSize * lockCallers {
		member := f.members[n%fleetSize]
		done.Go(func() {
			for round.Err() == nil {
				began := time.Now()
				unlock, err := member.lock(round, name)
				now := time.Now()
				mu.Lock()
				c.longest = max(c.longest, now.Sub(began).Seconds()*1e3)
				if err != nil {
					if round.Err() == nil {
						errs = append(errs, err)
					}
					mu.Unlock()
					return
				}
				if holders.Add(1) > 1 {
					errs = append(errs, errTwoHolders)
				}
				if !released.IsZero() {
					c.idle = append(c.idle, now.Sub(released).Seconds()*1e3)
				}
				mu.Unlock()
				time.Sleep(lockHold)
				holders.Add(-1)
				mu.Lock()
				released = time.Now()
				mu.Unlock()
				if err := unlock(ctx); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	done.Wait()
	c.trips = f.trips.n.Load() - before
	return c, errors.Join(errs...)
}
