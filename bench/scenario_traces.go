package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// What the memory keeps: the first million requests of each trace, Get and on a miss Put, entries of equal size, capacities as shares of the
// trace's distinct keys. A trace's figure is the mean over its capacities, the mean weighs all traces alike.
//
// What misleads: a loop without a source between a miss and its put is not what a service does. Ristretto applies what it is told some time later
// and loses some of it in such a loop; the local tier's puts wait until they are taken, otter does its upkeep at once. Costs are equal here, and nothing
// expires.

// traceShares are the capacities, in percent of the distinct keys.
var traceShares = []float64{0.1, 1, 5, 10, 20}

const (
	traceLeast   = 100 // entries
	traceWorkers = 8
	optimumName  = "optimum"
)

// tracePoint is one capacity of one trace: hit ratios in percent by subject; the local tier and otter by several workers too.
type tracePoint struct {
	entries int
	share   float64
	ratios  map[string]float64
}

func parallelName(name string) string { return fmt.Sprintf("%s, %d goroutines", name, traceWorkers) }

func keptOnTraces(ctx context.Context, e *env) ([]Row, error) {
	traces, err := tracesOf(e)
	if err != nil {
		return nil, err
	}
	var rows, curves []Row
	sums := map[string]float64{} // of the traces' means
	var against tracePoints
	for _, t := range traces {
		points, err := playAll(ctx, t)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.name, err)
		}
		means := map[string]float64{}
		for _, p := range points {
			for name, ratio := range p.ratios {
				means[name] += ratio / float64(len(points))
				curves = append(curves, curveRow(t.name, name, p))
			}
		}
		for name, mean := range means {
			sums[name] += mean / float64(len(traces))
		}
		rows = append(rows, pointsRow(t.name, means, atLeast(-5)))
		e.plot(traceCurves(t.name, points)...)
		against.add(t.name, means)
		e.say("  %s: %s\n", t.name, rows[len(rows)-1].Detail)
	}
	against.add("mean", sums)
	e.plot(against.series()...)
	rows = append(rows, pointsRow("mean", sums, atLeast(-1)),
		valueRow(fmt.Sprintf("mean: %d goroutines against one", traceWorkers), sums[parallelName("tiercache")]-sums["tiercache"], "points", atLeast(-1),
			fmt.Sprintf("otter: %+.1f", sums[parallelName("otter")]-sums["otter"])))
	slices.SortFunc(curves, func(a, b Row) int { return strings.Compare(a.What, b.What) })
	return append(rows, curves...), nil
}

// tracesOf are the traces of the run: those of its folder, or made ones.
func tracesOf(e *env) ([]trace, error) {
	if e.Traces == "" {
		e.say("  no folder of traces was given (-traces DIR): these are made ones\n")
		return madeTraces(pick(e, traceMost, traceMost/100)), nil
	}
	traces, err := readTraces(e.Traces)
	if e.Quick {
		for i := range traces {
			traces[i].keys = traces[i].keys[:min(len(traces[i].keys), traceMost/100)]
		}
	}
	return traces, err
}

// playAll plays a trace on every subject at every capacity. Capacities that come out equal are played once.
func playAll(ctx context.Context, t trace) (points []tracePoint, err error) {
	distinct := map[int64]struct{}{}
	for _, key := range t.keys {
		distinct[key] = struct{}{}
	}
	for _, share := range traceShares {
		p := tracePoint{entries: max(int(share/100*float64(len(distinct))), traceLeast), share: share, ratios: map[string]float64{}}
		if n := len(points); n > 0 && points[n-1].entries == p.entries {
			p.ratios = points[n-1].ratios
			points = append(points, p)
			continue
		}
		p.ratios[optimumName] = optimum(t.keys, p.entries)
		for _, subject := range keepers {
			for _, workers := range []int{1, traceWorkers} {
				name := subject.name
				if workers > 1 {
					if name != "tiercache" && name != "otter" {
						continue
					}
					name = parallelName(name)
				}
				if ctx.Err() != nil {
					return nil, context.Cause(ctx)
				}
				k, err := subject.make(p.entries)
				if err != nil {
					return nil, errors.Join(fmt.Errorf("%s of %d entries", name, p.entries), err)
				}
				p.ratios[name] = play(k, t.keys, workers)
				k.stop()
			}
		}
		points = append(points, p)
	}
	return points, nil
}

// pointsRow is the local tier's mean hit ratio against otter's; the others' and the optimum's stand in its detail.
func pointsRow(what string, means map[string]float64, b budget) Row {
	var others []string
	for _, name := range []string{"tiercache", parallelName("tiercache"), "otter", "LRU", "ristretto", optimumName} {
		others = append(others, fmt.Sprintf("%s %.1f", name, means[name]))
	}
	return valueRow(what+": points against otter", means["tiercache"]-means["otter"], "points", b, strings.Join(others, "; ")+" %")
}

// curveRow is one point of a trace's curve, for plots: hit ratio over capacity.
func curveRow(trace, subject string, p tracePoint) Row {
	r := valueRow(fmt.Sprintf("%s: %s at %04.1f %%", trace, subject, p.share), p.ratios[subject], "%", budget{}, fmt.Sprintf("%d entries", p.entries))
	r.Curve = true
	return r
}
