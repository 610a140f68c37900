package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	_ "modernc.org/sqlite" // pure Go: no C compiler needed
)

// workers is how many queries the database runs at once: as a server with that many workers, it queues the rest.
const workers = 4

// product is what a product page shows: a row, and its place among the best sellers of its category, for which all of that category
// is read.
type product struct {
	ID       int64
	Name     string
	Category string
	Cents    int64
	Sold     int64
	Place    int64
}

const (
	createTable = `CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT NOT NULL, category TEXT NOT NULL, cents INTEGER NOT NULL, sold INTEGER NOT NULL)`
	insertRow   = `INSERT INTO products (id, name, category, cents, sold) VALUES (?, ?, ?, ?, ?)`
	createIndex = `CREATE INDEX products_by_category ON products (category)`
	selectRow   = `SELECT p.id, p.name, p.category, p.cents, p.sold,
		1 + (SELECT count(*) FROM products q WHERE q.category = p.category AND q.sold > p.sold)
		FROM products p WHERE p.id = ?`
)

// shop is the database: the source that the cache protects. It counts its own reads, so the numbers printed are not the cache's word.
type shop struct {
	rows    int
	reads   atomic.Int64
	reader  *sql.DB
	writer  *sql.DB
	tempDir string // removed at the end; empty for a file of the user's
}

// openShop opens file, or a temporary one where file is empty, and builds the table of n rows if there is none; progress is told of
// every thousand rows. A file with other tables, or with a products table of another shape, is an error.
func openShop(ctx context.Context, file string, n int, progress func(rows int)) (_ *shop, err error) {
	s := &shop{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if file == "" {
		if s.tempDir, err = os.MkdirTemp("", "tiercache-quickstart-"); err != nil {
			return nil, err
		}
		file = filepath.Join(s.tempDir, "products.db")
	}
	dsn, err := dataSource(file)
	if err != nil {
		return nil, err
	}
	if s.writer, err = sql.Open("sqlite", dsn); err != nil {
		return nil, err
	}
	s.writer.SetMaxOpenConns(1)
	if s.reader, err = sql.Open("sqlite", dsn); err != nil {
		return nil, err
	}
	s.reader.SetMaxOpenConns(workers)
	s.reader.SetMaxIdleConns(workers)

	if err := s.buildIfEmpty(ctx, n, progress); err != nil {
		return nil, fmt.Errorf("database %s: %w", file, err)
	}
	if err := s.reader.QueryRowContext(ctx, `SELECT count(*) FROM products`).Scan(&s.rows); err != nil {
		return nil, fmt.Errorf("database %s: %w", file, err)
	}
	if _, err := s.product(ctx, 1); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("database %s: its products table is not the one this program builds: %w", file, err)
	}
	s.reads.Store(0)
	return s, nil
}

// dataSource returns the URI of file for the driver. WAL lets readers go on while the writer writes.
func dataSource(file string) (string, error) {
	abs, err := filepath.Abs(file)
	if err != nil {
		return "", err
	}
	path := filepath.ToSlash(abs)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // a drive letter
	}
	pragmas := url.Values{"_pragma": {"journal_mode(WAL)", "synchronous(NORMAL)", "busy_timeout(5000)"}}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: pragmas.Encode()}).String(), nil
}

// buildIfEmpty writes the table in one transaction: a run that was interrupted leaves nothing half built.
func (s *shop) buildIfEmpty(ctx context.Context, n int, progress func(rows int)) error {
	var tables, ours int
	err := s.writer.QueryRowContext(ctx, `SELECT count(*), count(CASE name WHEN 'products' THEN 1 END) FROM sqlite_master WHERE type = 'table'`).Scan(&tables, &ours)
	switch {
	case err != nil:
		return err
	case ours == 1:
		return nil
	case tables > 0:
		return errors.New("holds other tables but no products: name a new file, or one that this program has built")
	}
	tx, err := s.writer.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after a commit there is nothing left to undo
	if _, err := tx.ExecContext(ctx, createTable); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, createIndex); err != nil {
		return err
	}
	insert, err := tx.PrepareContext(ctx, insertRow)
	if err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(1, 2)) // the same table in every run
	for id := 1; id <= n; id++ {
		category := fmt.Sprintf("category %02d", random.IntN(50))
		name := fmt.Sprintf("product %06d of %s", id, category)
		if _, err := insert.ExecContext(ctx, id, name, category, 100+random.IntN(100_000), random.IntN(1_000_000)); err != nil {
			return err
		}
		if id%1000 == 0 {
			progress(id)
		}
	}
	return tx.Commit()
}

// product reads one row; sql.ErrNoRows where there is none. It waits while all workers are busy, at most until ctx ends.
func (s *shop) product(ctx context.Context, id int64) (p product, err error) {
	s.reads.Add(1)
	err = s.reader.QueryRowContext(ctx, selectRow, id).Scan(&p.ID, &p.Name, &p.Category, &p.Cents, &p.Sold, &p.Place)
	return p, err
}

// setPrice writes one row; sql.ErrNoRows where there is none.
func (s *shop) setPrice(ctx context.Context, id, cents int64) error {
	done, err := s.writer.ExecContext(ctx, `UPDATE products SET cents = ? WHERE id = ?`, cents, id)
	if err != nil {
		return err
	}
	if n, err := done.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, sql.ErrNoRows)
	}
	return nil
}

// ids is every id of the table, read row by row: the scan is never held in memory. It ends with an error if the scan fails.
func (s *shop) ids(ctx context.Context) iter.Seq2[int64, error] {
	return func(yield func(int64, error) bool) {
		rows, err := s.reader.QueryContext(ctx, `SELECT id FROM products`)
		if err != nil {
			yield(0, err)
			return
		}
		defer rows.Close() //nolint:errcheck // what went wrong is in rows.Err
		for rows.Next() {
			var id int64
			err := rows.Scan(&id)
			if !yield(id, err) || err != nil {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield(0, err)
		}
	}
}

// lastID is the largest id of the table: whatever lies above it is absent.
func (s *shop) lastID(ctx context.Context) (id int64, err error) {
	err = s.reader.QueryRowContext(ctx, `SELECT max(id) FROM products`).Scan(&id)
	return id, err
}

func (s *shop) close() error {
	var errs []error
	if s.reader != nil {
		errs = append(errs, s.reader.Close())
	}
	if s.writer != nil {
		errs = append(errs, s.writer.Close())
	}
	if s.tempDir != "" {
		errs = append(errs, os.RemoveAll(s.tempDir))
	}
	return errors.Join(errs...)
}
