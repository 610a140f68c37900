package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tiercache/tiercache"
)

// The cold key: a key that nobody has is asked for by 200 callers at the same moment, 50 in each of 4 operating-system processes. It
// is the shape of a stampede after an invalidation or an expiry of something on every page; processes, because what goroutines of one
// process share is the easier half. The loader takes 50 ms whatever the load: it stands for a query, and so whatever a caller waits
// beyond it is ours. What a timer of 50 ms takes beyond them is not: the loader is timed.
//
// Commands are counted by what Redis itself was sent (MONITOR), those that name the key: heartbeats, TIME, probes and the loading of
// scripts name none, and what a script does inside Redis was not sent. Rounds before the first counted one dial connections and load
// scripts.
//
// What misleads: with all four processes and Redis on two processors the slowest caller is as much the scheduler's as ours; its
// budget is judged by the median over the rounds, the worst round stands beside it.

const (
	coldProcesses = 4
	coldCallers   = 50
	coldLoad      = 50 * time.Millisecond
	coldWarmUp    = 5 // rounds that are not counted
)

type coldRequest struct {
	Key string    `json:"key"`
	At  time.Time `json:"at"` // the moment to begin; all processes read one machine's clock
}

type coldAnswer struct {
	Loads   int64         `json:"loads"`
	Slowest time.Duration `json:"slowest"`
	Load    time.Duration `json:"load"` // what the loader took, if it ran here
	Errors  []string      `json:"errors,omitempty"`
}

func coldKey(ctx context.Context, e *env) (_ []Row, err error) {
	var all []*child
	defer func() {
		for _, c := range all {
			err = errors.Join(err, c.stop())
		}
	}()
	for range coldProcesses {
		c, err := startWorker(ctx, "cold", e.server.addr)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
		var ready bool
		if err := c.ask(nil, &ready); err != nil {
			return nil, err
		}
	}
	watch, err := startMonitor(ctx, e.server.addr)
	if err != nil {
		return nil, err
	}
	defer watch.stop()

	rounds := pick(e, 40, 8)
	var loads, slowest, beyond []float64
	for round := -coldWarmUp; round < rounds; round++ {
		a, err := coldRound(all, coldRequest{Key: coldName(round), At: time.Now().Add(30 * time.Millisecond)})
		if err != nil {
			return nil, err
		}
		if round >= 0 {
			loads = append(loads, float64(a.Loads))
			slowest = append(slowest, a.Slowest.Seconds()*1e3)
			beyond = append(beyond, (a.Slowest-a.Load).Seconds()*1e3)
		}
	}
	if err := watch.settle(ctx); err != nil {
		return nil, err
	}
	commands := make([]float64, rounds)
	kinds := map[string]int{}
	for round := range rounds {
		for _, name := range watch.sent("{" + coldName(round) + "}") {
			commands[round]++
			kinds[name]++
		}
	}
	return coldRows(loads, slowest, beyond, commands, kinds), nil
}

// coldName pads the number, so that no key's name is the beginning of another's.
func coldName(round int) string { return fmt.Sprintf("cold-%+05d", round) }

// coldRound has all processes ask at once, and returns their answers as one.
func coldRound(all []*child, request coldRequest) (sum coldAnswer, _ error) {
	answers, errs := make([]coldAnswer, len(all)), make([]error, len(all))
	var done sync.WaitGroup
	for i, c := range all {
		done.Go(func() { errs[i] = c.ask(request, &answers[i]) })
	}
	done.Wait()
	if err := errors.Join(errs...); err != nil {
		return sum, err
	}
	for _, a := range answers {
		if len(a.Errors) > 0 {
			return sum, fmt.Errorf("a caller's Get failed: %s", a.Errors[0])
		}
		sum.Loads += a.Loads
		sum.Slowest, sum.Load = max(sum.Slowest, a.Slowest), max(sum.Load, a.Load)
	}
	return sum, nil
}

func coldRows(loads, slowest, beyond, commands []float64, kinds map[string]int) []Row {
	var sent []string
	for name, n := range kinds {
		sent = append(sent, fmt.Sprintf("%s %.1f", name, float64(n)/float64(len(commands))))
	}
	slices.Sort(sent)
	rounds := fmt.Sprintf("%d rounds", len(loads))
	return []Row{
		{What: "loads, worst round", Value: slices.Max(loads), Budget: atMost(1), Detail: rounds, Rounds: loads},
		{What: "slowest caller beyond the loader, median", Value: median(beyond), Unit: "ms", Low: quantile(beyond, 0.1), High: quantile(beyond, 0.9), Budget: atMost(5), Rounds: beyond},
		{What: "slowest caller, median", Value: median(slowest), Unit: "ms", Low: quantile(slowest, 0.1), High: quantile(slowest, 0.9), Detail: "the loader included: 50 ms and what its timer took beyond", Rounds: slowest},
		valueRow("slowest caller, worst round", slices.Max(slowest), "ms", budget{}, ""),
		{What: "commands sent, median", Value: median(commands), Budget: atMost(12), Detail: strings.Join(sent, ", "), Rounds: commands},
		valueRow("commands sent, worst round", slices.Max(commands), "", atMost(16), ""),
	}
}

// coldWorker is one of the processes.
func coldWorker(ctx context.Context, addr string, l *line) (err error) {
	var loads, took atomic.Int64
	shared, stop, err := connect(ctx, addr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	cache, err := tiercache.New(tiercache.Options[string, string]{
		Name:   "cold",
		Shared: shared,
		Load: func(ctx context.Context, key string) (string, error) {
			loads.Add(1)
			defer func(began time.Time) { took.Store(int64(time.Since(began))) }(time.Now())
			timer := time.NewTimer(coldLoad)
			defer timer.Stop()
			select {
			case <-timer.C:
				return "row of " + key, nil
			case <-ctx.Done():
				return "", context.Cause(ctx)
			}
		},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cache.Close()) }()
	if err := l.say(true); err != nil {
		return err
	}
	for {
		var request coldRequest
		if err := l.hear(&request); err != nil {
			return err
		}
		before := loads.Load()
		answer := askAtOnce(ctx, cache, request)
		if answer.Loads = loads.Load() - before; answer.Loads > 0 {
			answer.Load = time.Duration(took.Load())
		}
		if err := l.say(answer); err != nil {
			return err
		}
	}
}

// askAtOnce has all callers of this process begin at the moment of the request.
func askAtOnce(ctx context.Context, cache *tiercache.Cache[string, string], request coldRequest) coldAnswer {
	var (
		open   = make(chan struct{})
		took   [coldCallers]time.Duration
		failed [coldCallers]error
		done   sync.WaitGroup
	)
	for i := range coldCallers {
		done.Go(func() {
			<-open
			began := time.Now()
			_, failed[i] = cache.Get(ctx, request.Key)
			took[i] = time.Since(began)
		})
	}
	time.Sleep(time.Until(request.At))
	close(open)
	done.Wait()
	answer := coldAnswer{Slowest: slices.Max(took[:])}
	for _, err := range failed {
		if err != nil {
			answer.Errors = append(answer.Errors, err.Error())
		}
	}
	return answer
}
