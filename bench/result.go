package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// budget is a figure of the design: the measured one may not be above (or below) it. The zero budget is none.
type budget struct {
	Op    string  `json:"op"` // "<=" or ">="
	Value float64 `json:"value"`
}

func atMost(v float64) budget  { return budget{"<=", v} }
func atLeast(v float64) budget { return budget{">=", v} }

func (b budget) String() string {
	switch b.Op {
	case "<=":
		return "≤ " + number(b.Value)
	case ">=":
		return "≥ " + number(b.Value)
	default:
		return "–"
	}
}

// verdict returns OK, MISSED or, without a budget, nothing.
func (b budget) verdict(v float64) string {
	switch {
	case b.Op == "":
		return ""
	case b.Op == "<=" && v <= b.Value, b.Op == ">=" && v >= b.Value:
		return "OK"
	default:
		return "MISSED"
	}
}

// Row is one figure.
type Row struct {
	Scenario string    `json:"scenario"`
	What     string    `json:"what"`
	Value    float64   `json:"value"`
	Unit     string    `json:"unit"`          // "x" for a ratio
	Low      float64   `json:"low,omitempty"` // 10th percentile of the rounds
	High     float64   `json:"high,omitempty"`
	Budget   budget    `json:"budget"`
	Verdict  string    `json:"verdict,omitempty"`
	Detail   string    `json:"detail,omitempty"`
	Rounds   []float64 `json:"rounds,omitempty"` // every reading, in order
	Curve    bool      `json:"curve,omitempty"`  // a point of a plot: in no table
}

// ratioRow is the median of the ratios of the rounds.
func ratioRow(what string, ratios []float64, b budget, detail string) Row {
	return Row{What: what, Value: median(ratios), Unit: "x", Low: quantile(ratios, 0.1), High: quantile(ratios, 0.9), Budget: b, Detail: detail, Rounds: ratios}
}

// valueRow is one reading.
func valueRow(what string, v float64, unit string, b budget, detail string) Row {
	return Row{What: what, Value: v, Unit: unit, Budget: b, Detail: detail}
}

// Report is one run.
type Report struct {
	Schema      int               `json:"schema,omitempty"` // reportSchema; 0: of before series; 1: of before their kinds
	Began       time.Time         `json:"began"`
	Took        time.Duration     `json:"took_ns"`
	Quick       bool              `json:"quick"`
	Environment map[string]string `json:"environment"`
	Scenarios   []string          `json:"scenarios"`
	Skipped     map[string]string `json:"skipped,omitempty"` // scenario: why
	Rows        []Row             `json:"rows"`
	Series      []Series          `json:"series,omitempty"`
}

// reportSchema grows when a reader of the JSON would misread a new file.
const reportSchema = 2

// missed counts the budgets that were met and missed.
func (r *Report) missed() (met, missed int) {
	for _, row := range r.Rows {
		switch row.Verdict {
		case "OK":
			met++
		case "MISSED":
			missed++
		}
	}
	return met, missed
}

// printRows writes rows as an aligned table.
func printRows(w io.Writer, rows []Row) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		if r.Curve {
			continue
		}
		_, _ = fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%s\t%s\n", r.What, r.figure(), r.spread(), r.Budget, r.Verdict, r.Detail)
	}
	t.Flush() //nolint:errcheck // a terminal that is gone has nobody to tell
}

func (r Row) figure() string {
	if r.Unit == "x" {
		return "× " + number(r.Value)
	}
	return strings.TrimSpace(number(r.Value) + " " + r.Unit)
}

func (r Row) spread() string {
	if r.Low == r.High {
		return ""
	}
	return number(r.Low) + "–" + number(r.High)
}

func number(v float64) string {
	if v == float64(int64(v)) {
		return fmt.Sprintf("%d", int64(v))
	}
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// markdown is the report as a page, whose pictures are in a folder beside it.
func (r *Report) markdown(pictures string) string {
	w := &strings.Builder{}
	fmt.Fprintf(w, "# Benchmarks, %s\n\n", r.Began.Format("2 January 2006"))
	if r.Quick {
		fmt.Fprint(w, "A quick run: few and short rounds, small tables. Its figures say that the suite works, not how fast anything is.\n\n")
	}
	for _, k := range []string{"cpu", "cores", "os", "go", "redis", "versions"} {
		if v := r.Environment[k]; v != "" {
			fmt.Fprintf(w, "- %s: %s\n", k, v)
		}
	}
	fmt.Fprintf(w, "\nOne interleaved run of %s. Only the ratios carry over to another machine; in brackets the 10th and 90th percentile of the rounds.\n", r.Took.Round(time.Second))
	met, missed := r.missed()
	fmt.Fprintf(w, "Budgets met: %d; missed: %d.\n", met, missed)
	for _, name := range r.Scenarios {
		fmt.Fprintf(w, "\n## %s\n\n%s\n\n", name, title(name))
		if why := r.Skipped[name]; why != "" {
			fmt.Fprintf(w, "Skipped: %s\n", why)
			continue
		}
		fmt.Fprint(w, "| what | measured | budget | | detail |\n|---|---|---|---|---|\n")
		for _, row := range r.Rows {
			if row.Scenario != name || row.Curve {
				continue
			}
			figure := row.figure()
			if s := row.spread(); s != "" {
				figure += " (" + s + ")"
			}
			fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", row.What, figure, row.Budget, row.Verdict, row.Detail)
		}
		for _, f := range r.figures(name) {
			fmt.Fprintf(w, "\n![%s](%s/%s)\n\n%s\n", f.title(), pictures, f.file(), f.sentence())
		}
		fmt.Fprintf(w, "\nAgain: `%s`\n", repeat(name))
	}
	return w.String()
}

// write puts the report into dir as a page with pictures and as JSON with every reading, and returns the path of the page.
func (r *Report) write(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	name := r.Began.Format("2006-01-02") + "-" + r.Environment["go"]
	if !slices.Equal(r.Scenarios, usual()) {
		name += "-" + strings.Join(r.Scenarios, "-")
	}
	if r.Quick {
		name += "-quick"
	}
	path := filepath.Join(dir, name)
	raw, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(path+".json", append(raw, '\n'), 0o644); err != nil {
		return "", err
	}
	return r.page(path)
}

// page writes the page at path and .md, and its pictures into the folder path.
func (r *Report) page(path string) (string, error) {
	if err := r.drawAll(path); err != nil {
		return "", err
	}
	return path + ".md", os.WriteFile(path+".md", []byte(r.markdown(filepath.Base(path))), 0o644)
}
