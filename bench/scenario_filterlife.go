package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/tiercache/tiercache/bloom"
	"github.com/tiercache/tiercache/internal/filterlife"
)

// The life of a filter: what internal/filterlife plays, with more rows and for longer than the tests. The budget is no figure of speed: nobody is
// told "not found" of a row that was committed. What it costs stands beside it: how long everything passed, in all processes, and how long a
// build takes that a fleet waits for.
//
// What misleads: the source is a set in another Redis server, which gives a scan as fast as it is read; a database is slower. Processes,
// both servers and all questions share the machine's processors.

const (
	filterLifeName    = "filterlife"
	filterLifeInserts = 1000 // a second
	filterLifeStep    = 250 * time.Millisecond
)

func filterLife(ctx context.Context, e *env) ([]Row, error) {
	report, err := playFilterLife(ctx, e, bloom.PerProcess)
	if err != nil {
		return nil, err
	}
	rows := filterLifeRows(e, "", report)
	for i, took := range report.Builds {
		rows = append(rows, valueRow(fmt.Sprintf("build %d", i+1), took.Seconds(), "s", budget{}, []string{"before anything was inserted", "limited, during inserts, one process stopped", "limited, after the flush"}[i]))
	}
	e.plot(filterLifeCurves(report)...)
	report, err = playFilterLife(ctx, e, bloom.InRedis)
	if err != nil {
		return nil, err
	}
	return append(rows, filterLifeRows(e, "in Redis: ", report)...), nil
}

// playFilterLife plays it on servers of its own: one is flushed.
func playFilterLife(ctx context.Context, e *env, form bloom.Form) (report filterlife.Report, err error) {
	source, err := startServer(ctx)
	if err != nil {
		return report, err
	}
	defer source.stop()
	cache, err := startServer(ctx)
	if err != nil {
		return report, err
	}
	defer cache.stop()
	self, err := os.Executable()
	if err != nil {
		return report, err
	}
	return filterlife.Play(ctx, filterlife.Options{
		Cache: cache.addr, Source: source.addr, Name: filterLifeName,
		Rows: pick(e, 200_000, 5000), PerSecond: filterLifeInserts, Phase: pick(e, 5000, 300), Step: filterLifeStep, Form: form,
		Start: func(spec string) *exec.Cmd {
			cmd := exec.CommandContext(ctx, self, WorkerFlag, filterLifeName, spec)
			cmd.Stderr = os.Stderr
			return cmd
		},
	})
}

func filterLifeRows(e *env, form string, report filterlife.Report) []Row {
	sum := report.Sum()
	if sum.Wrong > 0 {
		e.say("%sthe first false negative: %s\n", form, sum.First)
	}
	processes := float64(len(report.Processes))
	return []Row{
		valueRow(form+"false negatives", float64(sum.Wrong+sum.Stats.FilterWrong), "", atMost(0), fmt.Sprintf("%d questions for committed rows; %d ended with an error", sum.Asked, sum.Failed)),
		valueRow(form+"inserts a second, while nothing was held", float64(sum.Inserted)/(sum.Free.Seconds()/processes), "", pick(e, atLeast(filterLifeInserts), budget{}), fmt.Sprintf("%d in %v, all processes together; %d asked for, with one stopped", sum.Inserted, (sum.Free/time.Duration(processes)).Round(100*time.Millisecond), filterLifeInserts)),
		valueRow(form+"time in which everything passed", 100*sum.Passing.Seconds()/(processes*report.Took.Seconds()), "%", budget{}, "of the time of all processes"),
	}
}

// filterLifeCurves are the play's course, with what befell the fleet.
func filterLifeCurves(report filterlife.Report) []Series {
	seconds := filterLifeStep.Seconds()
	inserts := Series{Subject: "inserts", What: "course", Unit: "a second, all processes", XUnit: "s"}
	questions, wrong := inserts, inserts
	questions.Subject, wrong.Subject = "questions for committed rows", "false negatives"
	passing := Series{Subject: "processes that let everything pass", What: "processes without a filter", Unit: "processes", XUnit: "s"}
	for i, s := range report.Course() {
		at := float64(i) * seconds
		inserts.add(at, float64(s.Inserted)/seconds)
		questions.add(at, float64(s.Asked)/seconds)
		wrong.add(at, float64(s.Wrong)/seconds)
		passing.add(at, s.Passing.Seconds()/seconds)
	}
	all := []Series{questions, inserts, wrong, passing, inserts.boundAt(filterLifeInserts, fmt.Sprintf("asked for: %d inserts", filterLifeInserts))}
	for _, m := range report.Moments {
		all = append(all, inserts.momentAt(m.At.Seconds(), m.What), passing.momentAt(m.At.Seconds(), m.What))
	}
	return all
}

// filterLifeWorker is one process of it; what stands in the place of the address is its spec.
func filterLifeWorker(ctx context.Context, spec string, l *line) error {
	return filterlife.Work(ctx, spec, l.in, l.out)
}
