"""Scrapy: crawl a site with the HTTP cache in a durabledbm file. Arguments: the site's URL, the directory."""

import json
import sys

import scrapy
from scrapy.crawler import CrawlerProcess

FOUND = []


class SiteSpider(scrapy.Spider):
    name = "site"
    start_urls = (sys.argv[1],)

    def parse(self, response):
        FOUND.append((response.url, len(response.body)))
        yield from response.follow_all(css="a")


process = CrawlerProcess(
    {
        "HTTPCACHE_ENABLED": True,
        "HTTPCACHE_STORAGE": "scrapy.extensions.httpcache.DbmCacheStorage",
        "HTTPCACHE_DBM_MODULE": "durabledbm",
        "HTTPCACHE_DIR": sys.argv[2],
        "LOG_LEVEL": "WARNING",
        "TELNETCONSOLE_ENABLED": False,
    }
)
crawler = process.create_crawler(SiteSpider)
process.crawl(crawler)
process.start()
stats = crawler.stats.get_stats()
print(
    json.dumps(
        {
            "pages": sorted(FOUND),
            "stored": stats.get("httpcache/store", 0),
            "from the cache": stats.get("httpcache/hit", 0),
            "errors": stats.get("log_count/ERROR", 0),
        }
    )
)
