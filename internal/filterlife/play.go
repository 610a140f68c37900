package filterlife

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache/bloom"
	"github.com/tiercache/tiercache/layers"
	"github.com/tiercache/tiercache/rebuild"
)

// processes is the size of the fleet.
const processes = 4

// stopped is how long a process is stopped: it must find that its filter lags, and not merely be late.
const stopped = bloom.MaxLag + time.Second

// noBreaker: many keys here are absent, and none of it is the source's fault.
var noBreaker = rebuild.BreakerOptions{FailureRate: -1}

// Options of a play.
type Options struct {
	Cache, Source string                      // addresses of two Redis servers: the first is flushed
	Name          string                      // of the cache
	Rows          int                         // in the source at the beginning
	PerSecond     int                         // inserts, of the processes that are not stopped, also while one is
	Phase         int                         // inserts between two faults
	Step          time.Duration               // of the course in the report; 0: none
	Form          bloom.Form                  // of the filter
	Start         func(spec string) *exec.Cmd // a command that calls Work with spec, its standard input and output
}

// Report is what was seen.
type Report struct {
	Processes []Answer
	Builds    []time.Duration // those that ended well
	Refused   []string        // why the others did not
	Took      time.Duration
	Moments   []Moment
}

// Sum adds up what all processes have seen.
func (r Report) Sum() (a Answer) {
	for _, p := range r.Processes {
		a.Inserted, a.Asked, a.Wrong, a.Failed, a.Absent = a.Inserted+p.Inserted, a.Asked+p.Asked, a.Wrong+p.Wrong, a.Failed+p.Failed, a.Absent+p.Absent
		a.Passing, a.Free = a.Passing+p.Passing, a.Free+p.Free
		if a.First == "" {
			a.First = p.First
		}
		a.Stats.Filtered, a.Stats.FilterWrong = a.Stats.Filtered+p.Stats.Filtered, a.Stats.FilterWrong+p.Stats.FilterWrong
	}
	return a
}

// play is one play under way.
type play struct {
	Options
	cache, source *redis.Client
	fleet         []*child
	began         time.Time
	report        Report
}

// child is a process, as the play sees it.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	say *json.Encoder
	got *json.Decoder
}

func (c *child) do(o order) (a Answer, err error) {
	if err = c.say.Encode(o); err == nil {
		err = c.got.Decode(&a)
	}
	if err != nil {
		return a, fmt.Errorf("filterlife: %s: %w", o.Do, err)
	}
	return a, nil
}

// Play plays it:
//
//  1. A filter is built; everybody inserts and asks from now on. 2. One process is stopped. 3. A filter is built meanwhile, during inserts.
//  4. While another is built, the stream of announcements is trimmed to its last entry: that build must end without a filter. 5. Redis is
//     flushed, and the stopped process goes on. 6. A filter is built, and believed by all. 7. Every process asks for every row.
//
// With a filter in Redis there is no lag and no stream to be behind of. Instead of 2 to 5: a process is stopped and a filter is built; a segment of it
// is lost while another is built, which takes its place; Redis is flushed while one more is built, which must end without a filter.
//
// The error says what could not be played. Whether anybody was told "not found" of a committed row is in the report.
func Play(ctx context.Context, o Options) (report Report, err error) {
	p := &play{Options: o, cache: redis.NewClient(&redis.Options{Addr: o.Cache}), source: redis.NewClient(&redis.Options{Addr: o.Source})}
	defer func() {
		for _, c := range p.fleet {
			err = errors.Join(err, c.end())
		}
		err = errors.Join(err, p.cache.Close(), p.source.Close())
	}()
	p.began = time.Now()
	steps := []func(context.Context) error{p.prepare, p.buildWhileOneIsStopped, p.trimAndFlush, p.recover, p.finish}
	if o.Form == bloom.InRedis {
		steps = []func(context.Context) error{p.prepare, p.loseSegment, p.flushBuild, p.recover, p.finish}
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return p.report, err
		}
	}
	p.report.Took = time.Since(p.began)
	return p.report, nil
}

// note says that something befalls the fleet now.
func (p *play) note(what string) {
	p.report.Moments = append(p.report.Moments, Moment{time.Since(p.began), what})
}

// built has a held scan end and waits for its build.
func (c *child) built() (Answer, error) {
	if _, err := c.do(order{Do: "release"}); err != nil {
		return Answer{}, err
	}
	return c.do(order{Do: "built"})
}

// end has the process end, or ends it.
func (c *child) end() error {
	_ = c.in.Close() // it may be gone
	done := time.AfterFunc(10*time.Second, func() { _ = c.cmd.Process.Kill() })
	defer done.Stop()
	if err := c.cmd.Wait(); err != nil {
		return fmt.Errorf("filterlife: a process: %w", err)
	}
	return nil
}

func (p *play) prepare(ctx context.Context) error {
	for i := 0; i < p.Rows; {
		var rows []any
		for ; i < p.Rows && len(rows) < 1000; i++ {
			rows = append(rows, "old-"+strconv.Itoa(i))
		}
		if err := p.source.SAdd(ctx, p.Name, rows...).Err(); err != nil {
			return fmt.Errorf("filterlife: %w", err)
		}
	}
	for i := range processes {
		spec, err := json.Marshal(Spec{
			Cache: p.Cache, Source: p.Source, Name: p.Name, Number: i,
			Every: (processes - 1) * time.Second / time.Duration(p.PerSecond), Began: p.began, Step: p.Step, Rows: uint64(2*p.Rows + 100_000), Form: p.Form, //nolint:gosec // not negative
		})
		if err != nil {
			return err
		}
		if err := p.start(string(spec)); err != nil {
			return err
		}
	}
	if err := p.build(0, 0); err != nil {
		return err
	}
	if err := p.believed(ctx); err != nil {
		return err
	}
	p.note("inserts")
	if err := p.all(order{Do: "begin"}); err != nil {
		return err
	}
	return p.more(ctx)
}

func (p *play) start(spec string) error {
	c := &child{cmd: p.Start(spec)}
	in, err := c.cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.cmd.Start(); err != nil {
		return err
	}
	c.in, c.say, c.got = in, json.NewEncoder(in), json.NewDecoder(out)
	p.fleet = append(p.fleet, c)
	return nil
}

// last is the process that is stopped.
func (p *play) last() *child { return p.fleet[processes-1] }

func (p *play) buildWhileOneIsStopped(ctx context.Context) error {
	if err := p.hold(p.fleet); err != nil {
		return err
	}
	if err := p.last().signal(ctx, "-STOP"); err != nil {
		return err
	}
	p.note("one stopped")
	since, err := p.cache.Time(ctx).Result()
	if err != nil {
		return fmt.Errorf("filterlife: %w", err)
	}
	running := p.fleet[:processes-1]
	if err := each(running, order{Do: "go"}); err != nil {
		return err
	}
	p.note("build 2")
	if err := p.build(0, p.Rows); err != nil { // about a second and a half of inserts
		return err
	}
	return p.until(ctx, "the process was stopped for long enough", func() (bool, error) {
		now, err := p.cache.Time(ctx).Result()
		return now.Sub(since) > stopped, err
	})
}

func (p *play) trimAndFlush(ctx context.Context) error {
	running, stream := p.fleet[:processes-1], "tc:"+p.Name+":filter:new"
	if _, err := p.fleet[1].do(order{Do: "build", PerSec: p.Rows, Held: true}); err != nil {
		return err
	}
	if err := p.more(ctx); err != nil {
		return err
	}
	if err := p.hold(running); err != nil {
		return err
	}
	p.note("trim")
	if err := p.cache.XTrimMaxLen(ctx, stream, 1).Err(); err != nil {
		return fmt.Errorf("filterlife: %w", err)
	}
	if err := each(running, order{Do: "go"}); err != nil {
		return err
	}
	a, err := p.fleet[1].built()
	if err != nil {
		return err
	}
	if a.Error == "" {
		return errors.New("filterlife: a filter was built although announcements were lost meanwhile")
	}
	p.report.Refused = append(p.report.Refused, a.Error)
	if err := p.hold(running); err != nil {
		return err
	}
	p.note("flush; it goes on")
	if err := p.cache.FlushAll(ctx).Err(); err != nil {
		return fmt.Errorf("filterlife: %w", err)
	}
	if err := p.last().signal(ctx, "-CONT"); err != nil {
		return err
	}
	return p.all(order{Do: "go"})
}

func (p *play) recover(ctx context.Context) error {
	if err := p.more(ctx); err != nil {
		return err
	}
	p.note("build 3")
	if err := p.build(2, p.Rows); err != nil {
		return err
	}
	if err := p.believed(ctx); err != nil {
		return err
	}
	p.note("believed")
	return p.more(ctx)
}

func (p *play) finish(context.Context) error {
	if err := p.hold(p.fleet); err != nil {
		return err
	}
	for _, c := range p.fleet {
		if _, err := c.do(order{Do: "end"}); err != nil {
			return err
		}
		a, err := c.do(order{Do: "look"})
		if err != nil {
			return err
		}
		course, err := c.do(order{Do: "course"})
		if err != nil {
			return err
		}
		a.Course = course.Course
		p.report.Processes = append(p.report.Processes, a)
	}
	return p.all(order{Do: "go"})
}

// hold keeps these processes from inserting and asking, once all of them have heard of everything that was announced.
func (p *play) hold(some []*child) error {
	var announced uint64
	for _, c := range some {
		a, err := c.do(order{Do: "hold"})
		if err != nil {
			return err
		}
		announced += a.Inserted
	}
	return each(some, order{Do: "heard", Heard: announced})
}

// build has a process build a filter and waits for it. A build that meets a server that is late, as one on a busy machine may be, is begun again.
func (p *play) build(i, perSecond int) error {
	for try := 1; ; try++ {
		if _, err := p.fleet[i].do(order{Do: "build", PerSec: perSecond}); err != nil {
			return err
		}
		a, err := p.fleet[i].do(order{Do: "built"})
		switch {
		case err != nil:
			return err
		case a.Error == "":
			p.report.Builds = append(p.report.Builds, a.Took)
			return nil
		case try == 5 || !strings.Contains(a.Error, layers.ErrUnreachable.Error()) && !strings.Contains(a.Error, layers.ErrTimeout.Error()):
			return fmt.Errorf("filterlife: building: %s", a.Error)
		}
		<-time.After(time.Second)
	}
}

// believed waits until every process believes a filter.
func (p *play) believed(ctx context.Context) error {
	for _, c := range p.fleet {
		if err := p.until(ctx, "the filter is believed", func() (bool, error) {
			a, err := c.do(order{Do: "look"})
			return a.Stats.FilterState == uint64(bloom.Believed), err
		}); err != nil {
			return err
		}
	}
	return nil
}

// more waits until so many rows more are committed.
func (p *play) more(ctx context.Context) error {
	start, err := p.source.SCard(ctx, p.Name).Result()
	if err != nil {
		return fmt.Errorf("filterlife: %w", err)
	}
	return p.until(ctx, "rows are inserted", func() (bool, error) {
		n, err := p.source.SCard(ctx, p.Name).Result()
		return n >= start+int64(p.Phase), err
	})
}

// patience is how long a play waits for what must come.
const patience = time.Minute

func (p *play) until(ctx context.Context, what string, ok func() (bool, error)) error {
	for end := time.Now().Add(patience); ; {
		done, err := ok()
		switch {
		case err != nil:
			return fmt.Errorf("filterlife: %w", err)
		case done:
			return nil
		case time.Now().After(end):
			return fmt.Errorf("filterlife: waited in vain: %s", what)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (p *play) all(o order) error { return each(p.fleet, o) }

func each(some []*child, o order) error {
	for _, c := range some {
		if _, err := c.do(o); err != nil {
			return err
		}
	}
	return nil
}

// signal stops the process or has it go on, by the kill command: signals of that kind have no portable name.
func (c *child) signal(ctx context.Context, name string) error {
	if err := exec.CommandContext(ctx, "kill", name, strconv.Itoa(c.cmd.Process.Pid)).Run(); err != nil { //nolint:gosec // of our own child
		return fmt.Errorf("filterlife: kill %s: %w", name, err)
	}
	return nil
}
