package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report is what a run found.
type report struct {
	rows    int
	callers int
	lines   []row

	filterRows uint64
	filterTook time.Duration

	oldCents, newCents int64
	updateTook         time.Duration
	updateReads        int64           // of the database, until all processes had the new row
	seen               []time.Duration // by process, from the moment Update returned
}

// String is the report for people.
func (r *report) String() string {
	w := &strings.Builder{}
	fmt.Fprintf(w, "%d products in SQLite, %d callers at once, %d caches playing %d processes\n\n", r.rows, r.callers, len(r.seen), len(r.seen))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(t, "asked for\twith\trequests\tdatabase reads\tp50\tp99\tmax\ttook\t")
	for _, l := range r.lines {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%s\t%s\t%s\t%s\t\n", l.what, l.with, l.requests, l.reads, short(l.p50), short(l.p99), short(l.most), short(l.took))
	}
	t.Flush() //nolint:errcheck // a builder takes everything
	fmt.Fprint(w, "\nSQLite is in this process: an id that it does not find costs it less than asking Redis. A database behind a network\n"+
		"would not be so cheap; what carries over is the column of its reads.\n")
	fmt.Fprintf(w, "\nThe filter was built from %d rows in %s by one process; the others fetched it.\n", r.filterRows, short(r.filterTook))
	fmt.Fprintf(w, "Update %s -> %s took %s. The new price was answered by its own process %s after that,\nby all %d within %s; the row was read %d× for that.\n",
		price(r.oldCents), price(r.newCents), short(r.updateTook), short(r.seen[0]), len(r.seen), short(slices.Max(r.seen)), r.updateReads)
	return w.String()
}

// short is d with about three digits.
func short(d time.Duration) string {
	switch {
	case d < time.Microsecond:
		return d.String()
	case d < time.Millisecond:
		return d.Round(100 * time.Nanosecond).String()
	case d < time.Second:
		return d.Round(100 * time.Microsecond).String()
	default:
		return d.Round(10 * time.Millisecond).String()
	}
}

func price(cents int64) string {
	return fmt.Sprintf("%d.%02d", cents/100, cents%100)
}
