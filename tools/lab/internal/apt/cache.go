package apt

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// CacheDir is where downloads are kept: below $XDG_CACHE_HOME, or ~/.cache.
func CacheDir() (string, error) {
	d, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("apt: no place for downloads: %w: set XDG_CACHE_HOME", err)
	}
	return filepath.Join(d, "ironspan"), nil
}

// Newest returns the folder in dir whose name is the newest version. The error wraps fs.ErrNotExist if there is
// none.
func Newest(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("apt: %w", err)
	}
	newest := ""
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") && (newest == "" || Older(newest, e.Name())) {
			newest = e.Name()
		}
	}
	if newest == "" {
		return "", fs.ErrNotExist
	}
	return filepath.Join(dir, newest), nil
}

// Older compares versions number by number.
func Older(a, b string) bool {
	for a != "" && b != "" {
		na, ra := leadingNumber(a)
		nb, rb := leadingNumber(b)
		switch {
		case na >= 0 && nb >= 0:
			if na != nb {
				return na < nb
			}
			a, b = ra, rb
		case a[0] != b[0]:
			return a[0] < b[0]
		default:
			a, b = a[1:], b[1:]
		}
	}
	return a == "" && b != ""
}

func leadingNumber(s string) (int, string) {
	i := 0
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	n, err := strconv.Atoi(s[:i])
	if err != nil {
		return -1, s
	}
	return n, s[i:]
}
