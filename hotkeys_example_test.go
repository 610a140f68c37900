package tiercache_test

import (
	"context"
	"fmt"

	"github.com/tiercache/tiercache"
)

// HotKeys tells what is read most, for a page of a service's own or a log line. One read makes no key hot.
func ExampleCache_HotKeys() {
	c, err := tiercache.New(tiercache.Options[int, string]{
		Name: "articles",
		Load: func(_ context.Context, id int) (string, error) { return fmt.Sprintf("article %d", id), nil },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = c.Close() }()
	_, _ = c.Get(context.Background(), 7)
	hot := 0
	for _, k := range c.HotKeys(10) {
		if k.Hot {
			hot++
		}
	}
	fmt.Println("hot keys:", hot)
	// Output: hot keys: 0
}

// A HotKey carries the key itself: what is shown of it is up to the caller.
func ExampleHotKey() {
	for _, k := range []tiercache.HotKey[int]{{Key: 7, Rate: 12_500, Hot: true}, {Key: 9, Rate: 40}} {
		fmt.Printf("article %d: %.0f reads/s, hot %v\n", k.Key, k.Rate, k.Hot)
	}
	// Output:
	// article 7: 12500 reads/s, hot true
	// article 9: 40 reads/s, hot false
}

// FleetHotKeys tells what all processes together read most. Without Shared this process is the fleet.
func ExampleCache_FleetHotKeys() {
	c, err := tiercache.New(tiercache.Options[int, string]{
		Name: "articles",
		Load: func(_ context.Context, id int) (string, error) { return fmt.Sprintf("article %d", id), nil },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = c.Close() }()
	keys, err := c.FleetHotKeys(context.Background(), 10)
	fmt.Println(len(keys), err)
	// Output: 0 <nil>
}

// A FleetHotKey carries the key's string form.
func ExampleFleetHotKey() {
	for _, k := range []tiercache.FleetHotKey{{Key: "7", Rate: 125_000}} {
		fmt.Printf("article %s: %.0f reads/s\n", k.Key, k.Rate)
	}
	// Output: article 7: 125000 reads/s
}
